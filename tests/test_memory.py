"""What can't fit is refused before it is compiled, with the bytes and a way out."""

import dataclasses
import functools
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import single

import mixjax as mx
from mixjax import _cgroups, _memory

PARAMS = single({"a": {"w": jnp.ones((8, 8))}, "b": {"w": jnp.ones(64)}})
MODEL = 2 * 64 * 4
CLIENTS, ROUNDS = 10, 3
DATA = mx.data.stack([{"x": np.ones((2, 2), np.float32)}] * CLIENTS)


def local(key: Any, params: Any, data: Any) -> Any:
    raise AssertionError("traced")


def run(**options: Any) -> Any:
    fed = mx.federation.fedavg(local, **options)
    return mx.federation.run(jax.random.key(0), fed, fed.init(PARAMS), DATA, ROUNDS)


KEPT, MEDIAN = {"keep_updates": True}, {"aggregate": mx.aggregation.coordinate_median}


def beside() -> int:
    """Bytes of the state, the cohort and the origins of every round."""
    state = mx.federation.fedavg(local).init(PARAMS)
    return _memory.tree_bytes((state, DATA)) + 4 * ROUNDS * CLIENTS * 2


@pytest.mark.parametrize(
    ("options", "stacks", "way_out"),
    [(KEPT, 1 + ROUNDS, "fewer rounds at once"), (MEDIAN, 1.5, r"aggregation\.mean without keep")],
    ids=["kept", "median"],
)
def test_a_stack_beyond_memory_is_refused_before_tracing(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], stacks: float, way_out: str
) -> None:
    needed = int(stacks * CLIENTS * MODEL) + beside()
    monkeypatch.setattr(_memory, "total_bytes", lambda mesh: needed - 1)
    with pytest.raises(mx.InputError, match=f"{needed - 1:,} bytes.*at least {needed:,}") as info:
        run(**options)
    with pytest.raises(mx.InputError, match=way_out):
        run(**options)
    assert f"{CLIENTS} clients x {MODEL} bytes" in str(info.value)
    # neither the mean nor a machine that has the bytes is refused
    for limit, chosen in ((needed - 1, {}), (needed, options), (None, options)):
        monkeypatch.setattr(_memory, "total_bytes", lambda mesh, limit=limit: limit)
        with pytest.raises(AssertionError, match="traced"):
            run(**chosen)


def test_a_cohort_beyond_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    needed = CLIENTS * MODEL + _memory.tree_bytes((PARAMS, DATA))
    monkeypatch.setattr(_memory, "total_bytes", lambda mesh: needed - 1)
    with pytest.raises(mx.InputError, match=rf"at least {needed:,}\. Reduce .* cohort\.fold"):
        mx.cohort.run(jax.random.key(0), PARAMS, DATA, local)


def test_a_chunk_beyond_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_memory, "total_bytes", lambda mesh: 7 * MODEL + beside())
    with pytest.raises(mx.InputError, match=r"training 4 clients .* smaller chunk_size"):
        run(chunk_size=4)
    with pytest.raises(AssertionError, match="traced"):
        run(chunk_size=3)


def drawn(key: Any, params: Any, data: Any) -> Any:
    update = jax.tree.map(lambda leaf: leaf + jax.random.normal(key, leaf.shape), params)
    return mx.client.LocalResult(update, jnp.float32(0))


def looks(key: Any, probe: Any, observation: Any) -> Any:
    return jax.tree.map(jnp.sum, observation._replace(active=None))


MEASURES = mx.attacks.Attack(
    None, None, lambda probe, units, update: mx.units.squared_norms(units, update), looks
)
READS = mx.attacks.Attack(None, None, None, looks, updates=True)
STACKED = {"aggregate": dataclasses.replace(mx.aggregation.mean, additive=False)}
TRIMMED = {"aggregate": functools.partial(mx.aggregation.trimmed_mean, trim=0.2)}
KRUM = {"aggregate": functools.partial(mx.aggregation.krum, byzantine=2)}
PLANS: dict[str, tuple[dict[str, Any], int]] = {
    "mean, kept": (KEPT, 1),
    "mean, three rounds kept": (KEPT, 3),
    "mean, read": ({"attack": READS}, 1),
    "stacked mean": (STACKED, 1),
    "stacked mean, two rounds kept": (STACKED | KEPT, 2),
    "median": (MEDIAN, 1),
    "median, read": (MEDIAN | {"attack": READS}, 1),
    "median, kept": (MEDIAN | KEPT, 1),
    "median, three rounds kept and measured": (MEDIAN | KEPT | {"attack": MEASURES}, 3),
    "trimmed mean": (TRIMMED | {"attack": MEASURES}, 2),
    "trimmed mean, two rounds kept": (TRIMMED | KEPT, 2),
    "krum": (KRUM | {"attack": MEASURES}, 1),
    "krum, kept": (KRUM | KEPT, 1),
    "krum, two rounds kept": (KRUM | KEPT, 2),
}
SHAPES = [((60, 60), (60, 60)), ((60, 100), (60, 20)), ((60, 30),) * 4]


@pytest.mark.parametrize("name", PLANS)
def test_what_is_asked_for_is_what_the_compiled_program_takes(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options, rounds = PLANS[name]
    shapes = SHAPES[list(PLANS).index(name) % 3]
    params = {f"layer{n}": {"w": jnp.zeros(shape)} for n, shape in enumerate(shapes)}
    data = mx.data.stack([{"x": np.ones((1, 2), np.float32)}] * 150)
    fed = mx.federation.fedavg(drawn, defence=mx.defences.mixnn(), **options)
    state = fed.init(params)
    plan = fed.play.lower(jax.random.key(0), state, data, rounds).compile().memory_analysis()
    taken = plan.temp_size_in_bytes + plan.output_size_in_bytes + plan.argument_size_in_bytes
    asked = []
    monkeypatch.setattr(_memory, "check_memory", lambda needed, *_: asked.append(needed))
    fed.check(state, data, rounds)
    assert 0.8 * taken < max(asked) <= taken


def test_the_limit_of_a_container_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(_cgroups, "CGROUPS", tmp_path)
    host = _memory.total_bytes()
    assert host is not None
    assert host > 2**28
    (tmp_path / "memory.max").write_text("max\n")
    assert _memory.total_bytes() == host
    (tmp_path / "memory.max").write_text("1048576\n")
    assert _memory.total_bytes() == _memory.total_bytes(mx.sharding.clients_mesh(2)) == 2**20


def test_the_limit_of_the_jobs_own_group_and_of_those_above_counts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(_cgroups, "CGROUPS", tmp_path)
    monkeypatch.setattr(_cgroups, "OWN_CGROUP", tmp_path / "cgroup")
    job = tmp_path / "slurm" / "job_7"
    job.mkdir(parents=True)
    (tmp_path / "cgroup").write_text("0::/slurm/job_7\n")
    (job / "memory.max").write_text("1048576\n")
    assert _memory.total_bytes() == 2**20
    (job / "memory.max").write_text("max\n")
    (job.parent / "memory.max").write_text("2097152\n")
    assert _memory.total_bytes() == 2**21
    # the first version of control groups
    (tmp_path / "cgroup").write_text("5:cpu:/\n4:memory:/slurm/job_7\n")
    old = tmp_path / "memory" / "slurm" / "job_7"
    old.mkdir(parents=True)
    (old / "memory.limit_in_bytes").write_text("4194304\n")
    assert _memory.total_bytes() == 2**22


def test_the_limits_of_the_process_count() -> None:
    program = (
        "import resource\n"
        "from mixjax import _memory\n"
        "for kind in (resource.RLIMIT_DATA, resource.RLIMIT_AS):\n"
        "    hard = resource.getrlimit(kind)[1]\n"
        "    resource.setrlimit(kind, (6 << 30, hard))\n"
        "    assert _memory.total_bytes() <= 6 << 30\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.usefixtures("unchecked")
def test_devices_that_know_their_memory_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    class Device:
        def memory_stats(self) -> dict[str, int]:
            return {"bytes_limit": 100}

    monkeypatch.setattr(jax, "devices", lambda: [Device(), Device()])
    assert _memory.total_bytes() == 100
    mesh: Any = type("Mesh", (), {"devices": np.array([Device(), Device()])})
    assert _memory.total_bytes(mesh) == 200
