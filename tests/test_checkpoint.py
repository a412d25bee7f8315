"""A run in segments is the run in one; stopped, changed and damaged runs."""

import functools
import logging
import os
import shutil
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_close, assert_equal, flip_a_bit

import mixjax as mx

CLIENTS, ROUNDS, EVERY = 4, 5, 2
KEY = jax.random.key(3)
CONFIG = {"rate": 0.1, "model": {"width": 2}, "layers": (1, 2)}


def loss_fn(params: Any, batch: Any, key: Any) -> jax.Array:
    del key
    return jnp.square(batch["x"] @ params["in"]["w"] @ params["out"]["w"] - batch["y"])


LOCAL = mx.client.local_training(loss_fn, optax.sgd(0.1), batch_size=2)
PARAMS = {"in": {"w": jnp.ones((3, 2))}, "out": {"w": jnp.array([0.5, -0.5])}}


@functools.cache
def cohort() -> mx.data.ClientData:
    rng = np.random.default_rng(0)
    return mx.data.stack(
        [
            {"x": rng.normal(size=(n, 3)).astype("f4"), "y": rng.normal(size=n).astype("f4")}
            for n in (3, 4, 2, 4)
        ]
    )


def with_a_number_changed(data: mx.data.ClientData) -> mx.data.ClientData:
    """One number of one example changed."""
    examples = dict(data.examples)
    examples["y"] = examples["y"].at[0, 0].add(1)
    return data._replace(examples=examples)


def dither() -> optax.GradientTransformation:
    """An optimizer whose state is a typed key."""

    def update(steps: Any, key: Any, params: Any = None) -> Any:
        del params
        key, own = jax.random.split(key)
        return jax.tree.map(lambda step: step + 0.1 * jax.random.normal(own), steps), key

    return optax.GradientTransformation(lambda _: jax.random.key(8), update)


@functools.cache
def federation(**options: Any) -> mx.federation.Federation:
    return mx.federation.fedavg(
        LOCAL,
        server_optimizer=optax.chain(dither(), optax.sgd(1.0, momentum=0.5)),
        defence=mx.defences.mixnn(),
        attack=mx.attacks.sim.passive(mx.data.take(cohort(), [0, 1])),
        **options,
    )


def run(folder: Path, rounds: int = ROUNDS, fed: Any = None, **options: Any) -> Any:
    fed = federation() if fed is None else fed
    arguments = {"key": KEY, "state": fed.init(PARAMS), "data": cohort()}
    arguments |= {"config": CONFIG, "every": EVERY} | options
    return mx.checkpoint.run(folder, federation=fed, rounds=rounds, **arguments)


@functools.cache
def whole() -> Any:
    fed = federation()
    return mx.federation.run(KEY, fed, fed.init(PARAMS), cohort(), ROUNDS)


def files(folder: Path) -> set[str]:
    return {path.name for name in ("records", "states") for path in (folder / name).iterdir()}


def contents(folder: Path) -> dict[Path, tuple[bytes, int]]:
    """Each file of a run, and when it was written."""
    found = [path for path in folder.glob("*/**/*") if path.is_file()]
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in found}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run, not to be changed."""
    folder = tmp_path_factory.mktemp("runs") / "done"
    run(folder)
    return folder


@pytest.fixture
def copy(done: Path, tmp_path: Path) -> Path:
    return shutil.copytree(done, tmp_path / "copy")


def test_segments_are_the_run_in_one(done: Path) -> None:
    # a finished run is read back
    assert_equal(run(done), whole())


def test_done_rounds_are_not_run_again(tmp_path: Path) -> None:
    ran = []

    def evaluate(params: Any) -> jax.Array:
        jax.debug.callback(lambda: ran.append(1))
        return jnp.sum(params["out"]["w"])

    fed = mx.federation.fedavg(LOCAL, evaluate=evaluate)
    for rounds, done in ((2, 0), (4, 2), (4, 4)):
        before = contents(tmp_path)
        ran.clear()
        run(tmp_path, rounds, fed)
        jax.effects_barrier()
        assert len(ran) == rounds - done
        kept = {name: content for name, content in contents(tmp_path).items() if name in before}
        assert kept == before


def test_a_run_can_be_made_longer(tmp_path: Path) -> None:
    run(tmp_path, 2)
    run(tmp_path, 4)
    assert mx.checkpoint.latest(tmp_path) == 4
    assert_equal(run(tmp_path), whole())


def test_records_are_written_once_and_the_last_states_kept(done: Path) -> None:
    assert files(done) == {
        "00000000-00000002.npz",
        "00000002-00000004.npz",
        "00000004-00000005.npz",
        "00000004",
        "00000004.json",
        "00000005",
        "00000005.json",
    }
    assert mx.checkpoint.latest(done) == 5


def test_minutes_save_seldom_and_change_nothing(tmp_path: Path) -> None:
    assert_equal(run(tmp_path, minutes=60), whole())
    assert files(tmp_path) == {"00000000-00000005.npz", "00000005", "00000005.json"}


def test_restore_gives_key_and_state_back(done: Path) -> None:
    like = federation().init(jax.tree.map(jnp.zeros_like, PARAMS))
    key, state, rounds = mx.checkpoint.restore(done, jax.random.key(0), like)
    assert rounds == ROUNDS
    assert_equal((key, state), (KEY, whole()[0]))


def test_other_kinds_of_key_and_dtypes_survive(tmp_path: Path) -> None:
    state = {
        "half": jnp.arange(3, dtype=jnp.bfloat16),
        "empty": jnp.zeros((0, 2)),
        "key": jax.random.key(1, impl="rbg"),
        "flag": jnp.bool_(True),
        "round": jnp.int32(0),
    }

    def advance(state: Any, rounds: int) -> Any:
        records = {"half": jnp.tile(state["half"], (rounds, 1)), "nothing": None}
        return {**state, "round": state["round"] + rounds}, records

    key = jax.random.key(0, impl="rbg")
    for rounds in (2, 4):
        last, records = mx.checkpoint.run_segments(tmp_path, key, advance, state, rounds, every=2)
        assert_equal(last, {**state, "round": np.int32(rounds)})
        assert records["nothing"] is None
        assert_equal(records["half"], jnp.tile(state["half"], (rounds, 1)))


@pytest.mark.parametrize("options", [{"chunk_size": 3}, {"mesh": 2}])
def test_resumed_with_another_layout_it_is_equal_up_to_summation(
    options: dict[str, Any], copy: Path
) -> None:
    if "mesh" in options:
        options = {"mesh": mx.sharding.clients_mesh(options["mesh"])}
    fed = federation(**options)
    state, records = run(copy, 7, fed)
    other = federation()
    expected = mx.federation.run(KEY, other, other.init(PARAMS), cohort(), 7)
    assert_equal(records.truth.origins, expected[1].truth.origins)
    assert_equal(jax.tree.map(lambda leaf: leaf[:ROUNDS], records), whole()[1])
    assert_close((state, records), expected, rtol=2e-5)


def test_the_folder_is_closed_to_others(done: Path) -> None:
    assert stat.S_IMODE(done.stat().st_mode) == 0o700
    # a copy of the parts stays closed too
    inside = [path for part in ("records", "states") for path in (done / part).rglob("*")]
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in inside}
    assert modes == {path: 0o600 if path.is_file() else 0o700 for path in inside}


def damage_state(folder: Path) -> None:
    found = [path for path in (folder / "states" / "00000005").rglob("*") if path.is_file()]
    flip_a_bit(max(found, key=lambda path: path.stat().st_size))


def damage_description(folder: Path) -> None:
    flip_a_bit(folder / "states" / "00000005.json")


def cut_state(folder: Path) -> None:
    shutil.rmtree(folder / "states" / "00000005")


def damage_records(folder: Path) -> None:
    flip_a_bit(folder / "records" / "00000004-00000005.npz")


def cut_records(folder: Path) -> None:
    path = folder / "records" / "00000004-00000005.npz"
    os.truncate(path, path.stat().st_size // 2)


def lose_records(folder: Path) -> None:
    (folder / "records" / "00000004-00000005.npz").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_state, "its files are not those that were written"),
        (damage_description, r"can't be read|not those that were written"),
        (cut_state, "its files are not those that were written"),
        (damage_records, "00000004-00000005.npz, are incomplete or damaged"),
        (cut_records, "00000004-00000005.npz, are incomplete or damaged"),
        (lose_records, "the records of rounds 4 to 4 are missing"),
    ],
)
def test_a_damaged_checkpoint_costs_the_rounds_since_the_one_before(
    damage: Callable[[Path], None], message: str, copy: Path
) -> None:
    damage(copy)
    with pytest.warns(
        UserWarning, match=f"round 5 in .*copy: .*{message}.*; going on from round 4"
    ):
        result = run(copy)
    assert_equal(result, whole())
    assert len(files(copy)) == 7


def test_without_a_good_checkpoint_it_says_what_to_do(copy: Path) -> None:
    damage_state(copy)
    flip_a_bit(copy / "states" / "00000004.json")
    message = r"no good checkpoint in .*copy.\n.*round 5.*\n.*round 4.*\n.*or delete it to start"
    with pytest.raises(mx.InputError, match=message):
        run(copy)
    with pytest.raises(mx.InputError, match="no good checkpoint"):
        mx.checkpoint.restore(copy, KEY, federation().init(PARAMS))


def test_records_without_a_checkpoint_are_not_lost_silently(copy: Path) -> None:
    shutil.rmtree(copy / "states")
    with pytest.raises(mx.InputError, match="no good checkpoint"):
        run(copy)
    assert len(list((copy / "records").iterdir())) == 3


def test_what_a_kill_leaves_half_done_is_removed(copy: Path) -> None:
    (copy / "records" / "00000005-00000007.npz").write_bytes(b"whole, but not yet described")
    (copy / "records" / "00000005-00000007.npz.5a.partial").write_bytes(b"torn")
    shutil.copytree(copy / "states/00000005", copy / "states/00000007")
    shutil.copytree(copy / "states/00000005", copy / "states/00000007.orbax-checkpoint-tmp")
    before = files(copy) - {name for name in files(copy) if "00000007" in name}
    assert_equal(run(copy), whole())
    assert files(copy) == before


REFUSALS: dict[str, tuple[dict[str, Any], str]] = {
    "another config": (
        {"config": {"rate": 0.2, "model": {"width": 2, "depth": 3}}},
        r"differs in\n  rate: 0.1 there, 0.2 now\n  layers: \[1, 2\] there, absent now\n"
        r"  model.depth: absent there, 3 now\n",
    ),
    "another key": ({"key": jax.random.key(4)}, "expected the key of the run in"),
    "another kind of key": ({"key": jax.random.key(3, impl="rbg")}, "expected the kind of key"),
    "another start": (
        {"state": federation().init({**PARAMS, "out": {"w": jnp.zeros(2)}})},
        "expected the starting state of the run",
    ),
    "another cohort": (
        {"data": with_a_number_changed(cohort())},
        "expected the cohort of the run in",
    ),
    "fewer rounds": ({"rounds": 3}, "at least the 5 rounds that the run in .* has done; got 3"),
    "no rounds a segment": ({"every": 0}, "expected every to be a whole number of at least 1"),
    "nothing kept": ({"keep": 0}, "expected keep to be a whole number of at least 1"),
    "negative minutes": ({"minutes": -1.0}, "expected minutes to be at least 0"),
    "a config that is no JSON": ({"config": {"x": KEY}}, "expected JSON values in config"),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", REFUSALS)
def test_resuming_something_else_is_refused(name: str, done: Path) -> None:
    options, message = REFUSALS[name]
    with pytest.raises(mx.InputError, match=message):
        run(done, **options)


def test_bad_data_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    fed = federation()
    nobody = cohort()._replace(active=jnp.zeros(CLIENTS, bool))
    with pytest.raises(mx.InputError, match="all 4 are inactive"):
        mx.checkpoint.run(tmp_path / "run", KEY, fed, fed.init(PARAMS), nobody, 2, every=1)
    assert not (tmp_path / "run").exists()


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(mx.InputError, match=r"new or empty folder, or a run's; .*'thesis.tex'"):
        run(tmp_path)
    with pytest.raises(mx.InputError, match=r"thesis.tex is a file"):
        run(tmp_path / "thesis.tex")


def test_records_of_another_shape_do_not_join(tmp_path: Path) -> None:
    def advance(width: int) -> Callable[[Any, int], Any]:
        return lambda state, rounds: (state + rounds, jnp.zeros((rounds, width, 2)))

    start = jnp.int32(0)
    mx.checkpoint.run_segments(tmp_path, KEY, advance(4), start, 2, every=1)
    message = r"shaped like those of earlier.*, 1 arrays \[\[4, 2\]\].*; got 1 arrays \[\[5, 2\]\]"
    with pytest.raises(mx.InputError, match=message):
        mx.checkpoint.run_segments(tmp_path, KEY, advance(5), start, 4, every=1)


def test_a_folder_in_use_is_refused_and_left_as_it_is(copy: Path) -> None:
    # the other process is about to finish this one
    (copy / "records" / "00000005-00000007.npz.5a.partial").write_bytes(b"half")
    before = contents(copy)
    refused = pytest.raises(mx.InputError, match=r"no other process runs in; .* is in use")
    with mx.checkpoint.exclusive(copy), refused:
        run(copy, 7)
    assert contents(copy) == before
    run(copy, 7)
    assert mx.checkpoint.latest(copy) == 7


def swap_records(folder: Path) -> None:
    one, other = sorted((folder / "records").iterdir())[:2]
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)


def shorten_records(folder: Path) -> None:
    path = min((folder / "records").iterdir())
    with np.load(path) as file:
        arrays = [file[name][:1] for name in file.files]
    with path.open("wb") as file:
        np.savez(file, *arrays)


def replace_records_by_another_runs(folder: Path) -> None:
    other = folder.parent / "other"
    run(other, key=jax.random.key(4))
    name = min(path.name for path in (folder / "records").iterdir())
    shutil.copyfile(other / "records" / name, folder / "records" / name)


@pytest.mark.parametrize("damage", [swap_records, shorten_records, replace_records_by_another_runs])
def test_records_that_are_not_the_ones_written_are_refused(
    damage: Callable[[Path], None], copy: Path
) -> None:
    damage(copy)
    with pytest.raises(mx.InputError, match=r"no good checkpoint in .*\n.*incomplete or damaged"):
        run(copy)


@pytest.mark.parametrize(
    "stray",
    [
        "states/._00000002.json",
        "states/00000002 (copy).json",
        "states/notes.txt",
        "records/._00000000-00000002.npz",
        "records/backup.npz",
        ".DS_Store",
        "._records",
    ],
)
def test_files_of_other_programs_are_passed_over_and_left(stray: str, copy: Path) -> None:
    path = copy / stray
    path.write_bytes(b"\0\5\x16\7")
    assert mx.checkpoint.latest(copy) == ROUNDS
    like = federation().init(PARAMS)
    assert mx.checkpoint.restore(copy, KEY, like)[2] == ROUNDS
    assert_equal(run(copy), whole())
    run(copy, ROUNDS + 1)
    assert path.exists()


def test_a_relative_folder_can_be_restored(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(copy.parent)
    assert mx.checkpoint.restore(copy.name, KEY, federation().init(PARAMS))[2] == ROUNDS


def other_federations() -> dict[str, mx.federation.Federation]:
    def fed(local: Any = LOCAL, **options: Any) -> mx.federation.Federation:
        parts = {
            "server_optimizer": optax.chain(dither(), optax.sgd(1.0, momentum=0.5)),
            "defence": mx.defences.mixnn(),
            "attack": mx.attacks.sim.passive(mx.data.take(cohort(), [0, 1])),
        }
        return mx.federation.fedavg(local, **parts | options)

    faster = mx.client.local_training(loss_fn, optax.sgd(0.2), batch_size=2)
    larger = mx.client.local_training(loss_fn, optax.sgd(0.1), batch_size=3)
    other_people = mx.attacks.sim.passive(mx.data.take(cohort(), [0, 2]))
    noise = mx.defences.compose(mx.defences.noisy_gradient(0.1), mx.defences.mixnn())
    return {
        "the same": fed(),
        "another learning rate": fed(faster),
        "another batch size": fed(larger),
        "no defence": fed(defence=mx.defences.none()),
        "noise": fed(defence=noise),
        "other weights": fed(weighting="uniform"),
        "a bound": fed(max_norm=3.0),
        "other participants": fed(participation=mx.participation.uniform(3)),
        "another server": fed(attack=other_people),
        "another policy": fed(broken="raise"),
    }


@pytest.mark.parametrize("name", other_federations())
def test_another_federation_is_refused_with_the_difference(name: str, copy: Path) -> None:
    fed = other_federations()[name]
    if name == "the same":
        run(copy, 7, fed)
        return
    with pytest.raises(mx.InputError, match=r"the federation that [^\n]*\n[^\n]* there, .* now"):
        run(copy, 7, fed)


def test_other_flags_of_jax_are_refused(copy: Path) -> None:
    refused = pytest.raises(
        mx.InputError, match=r"default_matmul_precision: null there, .*bfloat16"
    )
    with jax.default_matmul_precision("bfloat16"), refused:
        run(copy, 7)


def test_a_checkpoint_of_another_format_is_told(copy: Path) -> None:
    for path in (copy / "states").glob("*.json"):
        path.write_text(path.read_text().replace('"version": 2', '"version": 1'))
    with pytest.raises(mx.InputError, match="its format is of version 1, not 2"):
        run(copy)


def test_a_folder_that_vanishes_is_not_said_to_be_kept(tmp_path: Path) -> None:
    folder = tmp_path / "run"

    def advance(state: Any, rounds: int) -> Any:
        if not isinstance(state, jax.core.Tracer) and state == 4:
            shutil.rmtree(folder)
        return state + rounds, state + jnp.arange(rounds)

    with pytest.raises(OSError, match="moved or removed while in use, and what was saved"):
        mx.checkpoint.run_segments(folder, KEY, advance, jnp.int32(0), 8, every=2)


def test_threads_that_save_leave_the_log_as_it_was(tmp_path: Path) -> None:
    logger = logging.getLogger("absl")
    before = (logger.disabled, list(logger.filters))

    def save(number: int) -> None:
        def advance(state: Any, rounds: int) -> Any:
            return state + rounds, state + jnp.arange(rounds)

        folder = tmp_path / str(number)
        mx.checkpoint.run_segments(folder, KEY, advance, jnp.int32(0), 4 + number, every=1)

    threads = [threading.Thread(target=save, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (logger.disabled, list(logger.filters)) == before
