"""Results say what they are of: whole numbers, a model that learned, one data set, all sessions."""

import dataclasses
import gzip
import json
import math
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax
import jax
import numpy as np
import pytest

import mixjax as mx
from experiments import (
    evaluate,
    figures,
    membership,
    metrics,
    planted,
    provenance,
    records,
    report,
    reproduce,
    results,
    resume,
    tasks,
)
from experiments.conditions import Case

NAN = math.nan
CASES = [Case("none", "passive"), Case("noisy", "passive", (("clip_norm", 4.0), ("sigma", 0.1)))]
DATA = {"planted": False, "pool": 10}


def row(case: Case, seed: int = 0, number: int = 1, **changes: Any) -> dict[str, Any]:
    keys = {"seed": seed, **case.keys(), "round": number, "excluded": 0, "stepped": True}
    numbers = dict.fromkeys((*results.FIGURES_OF_A_CASE, "loss"), 0.5)
    units = {"conv": 0.5, "out": 0.5}
    more = {"unit_level": units, "unit_accumulated": units, "participants": [0.4, 0.6]}
    return keys | numbers | more | {"diverged": []} | changes


def session(seconds: float = 1.0, **changes: Any) -> dict[str, Any]:
    return {"environment": provenance.environment() | changes, "seconds": seconds}


def summary_of(rows: results.Rows, **data: Any) -> dict[str, Any]:
    config = evaluate.Config(rounds=1, seeds=1)
    options = results.config_dict(config, tasks.resolve(config))
    return results.summarize(rows, options, DATA | data, {"conv": 9, "out": 2}, [session()])


def strictly(text: str) -> Any:
    """JSON as everybody else reads it."""
    return json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))


# numbers that are not finite


@pytest.mark.parametrize("value", [NAN, math.inf, -math.inf, np.float64("nan")])
def test_what_is_not_finite_is_null_in_every_file(value: float, tmp_path: Path) -> None:
    content = {"loss": value, "deep": [{"mean": value}, (value, 1.5)], "fine": 0.1}
    written = {"loss": None, "deep": [{"mean": None}, [None, 1.5]], "fine": 0.1}
    results.append(tmp_path / "rounds.jsonl", [content, content])
    lines = (tmp_path / "rounds.jsonl").read_text().splitlines()
    assert [strictly(line) for line in lines] == [written, written]
    results.write_json(tmp_path / "summary.json", content)
    assert strictly((tmp_path / "summary.json").read_text()) == written


def test_resuming_reads_back_what_was_not_finite(tmp_path: Path) -> None:
    path = tmp_path / "rounds.jsonl"
    rows = [row(CASES[0], loss=NAN, unit_level={"conv": NAN, "out": 0.25})]
    results.append(path, rows)
    found, count = resume.finished(path, [resume.row_keys(0, CASES[:1], 1)])
    assert count == 1
    np.testing.assert_equal(found, rows)


def test_table_page_and_figures_have_a_place_for_what_is_not_there(tmp_path: Path) -> None:
    gaps = {"accuracy": NAN, "attribution": NAN, "auc": NAN, "participants": [NAN, 0.5]}
    units = {"conv": NAN, "out": NAN}
    gaps |= {"unit_level": units, "unit_accumulated": units}
    rows = [row(CASES[0], seed) for seed in range(2)]
    rows += [row(CASES[1], seed, **gaps) for seed in (0, 1)]
    page = tmp_path / "page.md"
    path = records.beside(page) / "a" / "summary.json"
    path.parent.mkdir(parents=True)
    results.write_json(path, summary_of(rows))
    strictly(path.read_text())
    summary = results.read_summary(path)
    plain, noisy = report.table(summary).splitlines()[2:]
    assert "| 50.0 [50.0, 50.0] |" in plain
    assert noisy.split(" | ")[2] == noisy.split(" | ")[4] == "–"
    assert evaluate.table(summary).row_count == 3
    text = report.text(page, [report.Entry("a", "A", {})])
    assert "## A" in text
    assert "nan" not in text
    assert {path.stem for path in figures.draw_all(rows, tmp_path)} >= {"utility", "frontier"}


def test_a_bound_that_is_infinite_is_shown_as_such(tmp_path: Path) -> None:
    summary = summary_of([row(case) for case in CASES])
    summary["results"][1]["epsilon"] = math.inf
    results.write_json(tmp_path / "summary.json", summary)
    lines = report.table(results.read_summary(tmp_path / "summary.json")).splitlines()
    assert lines[-1].endswith("| ∞ |")


def test_the_loss_of_a_round_is_of_those_who_are_there() -> None:
    losses = np.array([[1.0, 3.0], [NAN, 3.0], [NAN, NAN], [math.inf, 1.0]])
    np.testing.assert_equal(metrics._mean_of_known(losses), [2.0, 3.0, NAN, math.inf])


def test_a_round_without_scores_has_no_figures_and_names_what_diverged() -> None:
    scores = np.random.default_rng(0).normal(size=(3, 5, 6, 2))
    truth = np.arange(6) % 2
    whole = metrics._attack(scores, truth, 2, "")
    scores[1, 2, 3, 0] = NAN
    for name, column in metrics._attack(scores, truth, 2, "").items():
        np.testing.assert_array_equal(column, np.where([0, 1, 0], NAN, whole[name]))
    references = {"w": np.ones((3, 2, 2, 4)), "b": np.ones((3, 2, 2, 1))}
    references["b"][2, 0, 1] = math.inf
    assert metrics._not_finite(references, ("left", "right")) == [[], [], ["right"]]


# training that diverged


@pytest.mark.parametrize(
    ("stepped", "message"),
    [
        (
            [False, False, False],
            r"seed 3, defence top 10%, attack passive: of 3 .* in any roun",
        ),
        ([True, False, False], r"of 3 rounds none took a step after round 1,"),
        ([False, True, False], r"of 3 rounds none took a step after round 2,"),
    ],
)
def test_a_model_that_nothing_moves_is_an_error(stepped: list[bool], message: str) -> None:
    kept = Case("top_k", "passive", (("fraction", 0.1),))
    rows = [row(CASES[0], seed, number) for seed in (0, 3) for number in (1, 2, 3)]
    rows += [row(kept, 0, number) for number in (1, 2, 3)]
    results.check_trained(rows)
    rows += [row(kept, 3, n, stepped=step) for n, step in enumerate(stepped, start=1)]
    with pytest.raises(mx.InputError, match=message):
        results.check_trained(rows)


def test_noise_that_ends_training_is_a_result() -> None:
    rows = [row(CASES[0], 0, 1), row(CASES[1], 0, 1, stepped=False)]
    results.check_trained(rows)


def test_a_reference_that_diverged_is_an_error_that_names_it() -> None:
    rows = [row(CASES[0], seed, number) for seed in (0, 3) for number in (1, 2)]
    results.check_trained(rows)
    rows[3]["diverged"] = ["left", "right"]
    with pytest.raises(
        mx.InputError,
        match=r"seed 3, defence plain FL, attack passive: in round 2 that for left and right div",
    ):
        results.check_trained(rows)


def test_updates_that_were_left_out_are_counted_and_told() -> None:
    rows = [row(CASES[0], 0, 1), row(CASES[0], 0, 2)]
    rows += [row(CASES[1], 0, 1, excluded=2, stepped=False), row(CASES[1], 0, 2, excluded=1)]
    results.check_trained(rows)
    summary = summary_of(rows)
    names = ("updates", "excluded", "rounds_without_step")
    assert [[entry[name] for name in names] for entry in summary["results"]] == [
        [4, 0, 0],
        [4, 3, 1],
    ]
    (line,) = results.warnings(summary)
    assert line.startswith("noise σ=0.1, passive: 3 of 4 updates were excluded")
    assert line in report.section(report.Entry("a", "A", {}), summary)


def test_an_evaluation_that_diverged_fails_draws_nothing_and_keeps_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"defences": ("none",), "attacks": ("passive",)}
    config = evaluate.Config(
        **options, rounds=1, seeds=2, learning_rate=1e30, auxiliary=1, out=tmp_path
    )
    message = r"seed 0, defence plain FL, attack passive: of 1 rounds none took a step in any round"
    with pytest.raises(mx.InputError, match=message):
        evaluate.main(config)
    (line,) = (tmp_path / "rounds.jsonl").read_text().splitlines()
    found = strictly(line)
    assert found["excluded"] == len(found["participants"]) > 10
    assert found["stepped"] is False
    assert found["loss"] is None
    # not by going on from there, either
    monkeypatch.setattr(evaluate, "run_job", lambda *args: pytest.fail("trained on"))
    with pytest.raises(mx.InputError, match=message):
        evaluate.main(dataclasses.replace(config, resume=True))
    assert not list(tmp_path.glob("*.png"))
    assert not (tmp_path / "summary.json").exists()


def test_membership_of_a_model_that_diverged_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wild = tasks.TASKS["vowels"]._replace(learning_rate=1e30)
    monkeypatch.setitem(tasks.TASKS, "vowels", wild)
    options: dict[str, Any] = {"defences": ("none",), "dataset": "vowels", "shadows": 4}
    config = membership.Config(**options, rounds=1, seeds=1, out=tmp_path)
    with pytest.raises(mx.InputError, match=r"seed 0, defence plain FL: of 1 rounds the last took"):
        membership.main(config)
    assert not list(tmp_path.iterdir())


def test_membership_behind_a_defence_that_breaks_every_update_is_an_error(tmp_path: Path) -> None:
    options: dict[str, Any] = {"defences": ("noisy",), "dataset": "vowels", "noise": (3e38,)}
    config = membership.Config(**options, rounds=1, seeds=1, shadows=4, out=tmp_path)
    with pytest.raises(mx.InputError, match=r"seed 0, defence noise σ=3e\+38: of 1 rounds the la"):
        membership.main(config)
    assert not list(tmp_path.iterdir())


# one data set, one program


def dataset(value: float = 1.0, person: int = 7, arm: int = 1, label: int = 3) -> mx.data.Dataset:
    examples = [
        mx.data.Examples(np.full((2, 3), 1, np.float32), np.full(2, 3, np.int32)),
        mx.data.Examples(np.full((2, 3), value, np.float32), np.full(2, label, np.int32)),
    ]
    part = mx.data.stack(examples)
    attribute = mx.data.Attribute("arm", ("left", "right"), np.array([0, arm]))
    return mx.data.Dataset(part, part, attribute, np.array([5, person]), ("a", "b", "c", "d"))


def identity(**changes: Any) -> dict[str, Any]:
    return provenance.identity({"rounds": 2}, provenance.of_data(dataset(**changes), None))


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"value": 2.0}, "data.examples"),
        ({"value": np.nextafter(np.float32(1), np.float32(2))}, "data.examples"),
        ({"label": 2}, "data.examples"),
        ({"person": 8}, "data.people"),
        ({"arm": 0}, "data.of_participants"),
    ],
)
def test_other_data_is_refused_with_its_name(
    changes: dict[str, Any], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    mx.checkpoint.check_config(identity(), identity(), "here")
    with pytest.raises(mx.InputError, match=rf"differs in\n  {name}: .* there, .* now\nResume"):
        mx.checkpoint.check_config(identity(), identity(**changes), "here")


def test_planted_data_is_other_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    before = identity()
    planted.mark(tmp_path)
    with pytest.raises(mx.InputError, match=r"data.planted: false there, true now"):
        mx.checkpoint.check_config(before, identity(), "here")


def other_flax(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(flax, "__version__", "0.0")


def more_devices(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(jax, "device_count", lambda: 9)


def xla_flags(patch: pytest.MonkeyPatch) -> None:
    patch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")


def other_mixjax(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(mx, "__version__", "0.0")


PROGRAMS: dict[str, Callable[[pytest.MonkeyPatch], Any]] = {
    'versions.flax: .* there, "0.0" now': other_flax,
    'versions.mixjax: .* there, "0.0" now': other_mixjax,
    "devices: 2 there, 9 now": more_devices,
    "flags.XLA_FLAGS": xla_flags,
}
MODES: dict[str, Callable[[], Any]] = {
    "flags.enable_x64: false there, true now": lambda: jax.enable_x64(True),
    "flags.default_prng_impl": lambda: jax.default_prng_impl("rbg"),
    "flags.default_matmul_precision": lambda: jax.default_matmul_precision("float32"),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_another_program_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = identity()
    PROGRAMS[name](monkeypatch)
    with pytest.raises(mx.InputError, match=f"differs in\n  environment.{name}"):
        mx.checkpoint.check_config(before, identity(), "here")


@pytest.mark.parametrize("name", MODES)
def test_another_mode_of_jax_is_refused(name: str) -> None:
    before = identity()
    with MODES[name]():
        after = provenance.identity({"rounds": 2}, before["data"])
    with pytest.raises(mx.InputError, match=f"differs in\n  environment.{name}"):
        mx.checkpoint.check_config(before, after, "here")


def test_where_the_data_lies_and_how_many_cores_there_are_is_harmless(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = identity()
    monkeypatch.setattr("os.cpu_count", lambda: 77)
    monkeypatch.setattr("platform.python_version", lambda: "3.99")
    data = provenance.of_data(dataset(), tmp_path)
    mx.checkpoint.check_config(before, provenance.identity({"rounds": 2}, data), "here")


# planted data is never published as real

WRITERS: dict[str, Callable[[Path], Path]] = {
    "motionsense": lambda path: planted.motionsense(path, people=1),
    "mobiact": lambda path: planted.mobiact(path, people=(1,), trials=1),
    "its inner folder": lambda path: (
        planted.mobiact(path, people=(1,), trials=1) / "MobiAct_Dataset_v2.0"
    ),
    "lfw": lambda path: planted.lfw(path, people=1),
    "lfw_prepared": lambda path: planted.lfw_prepared(path, people=1),
    "verb_agg": lambda path: planted.verb_agg(path, people=2),
    "cifar10": lambda path: planted.cifar10(path, train=1, test=1),
    "fashion_mnist": lambda path: planted.fashion_mnist(path, train=1, test=1),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_planted_set_says_so(name: str, tmp_path: Path) -> None:
    assert not planted.is_planted(tmp_path)
    assert planted.is_planted(WRITERS[name](tmp_path))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Commands that would have been run; each is refused."""
    asked: list[list[str]] = []

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        asked.append(command)
        said = "warning: careful.\nerror: it differs in\n  data.planted"
        return subprocess.CompletedProcess(command, 2, None, said)

    monkeypatch.setattr(subprocess, "run", run)
    return asked


SETTING = {"dataset": "motionsense", "rounds": 1, "seeds": 1}


def finished(out: Path, data: dict[str, Any] | None) -> Path:
    """A folder as a finished evaluation leaves it."""
    options = reproduce.asked(SETTING)[2]
    mixed = Case("mixnn", "passive")
    rows = [row(case) for case in (*CASES, mixed)]
    summary = results.summarize(rows, options, data or DATA, {"conv": 9, "out": 2}, [session()])
    if data is None:
        del summary["data"]
    out.mkdir(parents=True)
    results.write_json(out / "summary.json", summary)
    results.append(out / "rounds.jsonl", rows)
    return out


def real(folder: Path, seed: int = 0) -> Path:
    """Files that don't say they are planted."""
    planted.motionsense(folder, seed=seed, samples=(130, 130))
    (folder / planted.MARK).unlink()
    return folder


def published(out: Path) -> Path:
    return records.beside(out.parent / "docs" / "results.md") / "toy"


def run(folder: Path | None, out: Path, synthetic: bool) -> str | None:
    return reproduce.run(SETTING, folder, out, synthetic, published(out))


def pages(out: Path) -> tuple[str, str]:
    """Those of results and of planted data, of what was published."""
    target = out.parent / "docs" / "results.md"
    report.write(target, [report.Entry("toy", "Toy", reproduce.asked(SETTING)[2])], quick=False)
    return target.read_text(), target.with_name("planted.md").read_text()


def test_what_was_planted_is_not_finished_for_real_data_and_has_a_page_of_its_own(
    tmp_path: Path, calls: list[list[str]], capfd: pytest.CaptureFixture[str]
) -> None:
    out = finished(tmp_path / "out", {"planted": True, "pool": 4})
    assert run(None, out, True) is None
    assert not calls
    for folder in (real(tmp_path / "real"), tmp_path / "nowhere", None):
        assert run(folder, out, False) == "it differs in data.planted"
    assert len(calls) == 3
    assert "warning: careful." in capfd.readouterr().err
    of_results, of_planted = pages(out)
    assert "## Toy" not in of_results
    assert "* Toy: run on [planted data](planted.md) alone." in of_results
    assert "toy, 1 seeds" not in of_results
    assert "## Toy\n\n**Planted data.**" in of_planted
    assert of_planted.startswith("# Planted data: no results")


def test_what_was_real_is_finished_for_the_same_data_alone(
    tmp_path: Path, calls: list[list[str]]
) -> None:
    folder = real(tmp_path / "real")
    load = tasks.TASKS["motionsense"].load
    data = provenance.of_data(load(folder, 0, 0, 0), folder)
    out = finished(tmp_path / "out", data)
    assert run(folder, out, False) is None
    assert run(None, out, False) is None
    assert not calls
    assert run(real(tmp_path / "other", seed=1), out, False)
    # what is planted does not take the place of what is real
    assert run(None, out, True) is None
    assert run(None, tmp_path / "another", True) is None
    planted.mark(folder)
    assert run(folder, out, False)
    assert len(calls) == 2
    of_results, of_planted = pages(out)
    assert "Planted data" not in of_results
    assert "## Toy" not in of_planted
    assert "toy, 1 seeds" in of_results


def test_records_are_the_same_bytes_and_their_rows_make_the_summary(tmp_path: Path) -> None:
    out = finished(tmp_path / "out", DATA)
    folders = tmp_path / "first", tmp_path / "second"
    for folder in folders:
        records.publish(out, folder)
    first, second = ((folder / "rounds.jsonl.gz").read_bytes() for folder in folders)
    assert first == second
    assert gzip.decompress(first) == (out / "rounds.jsonl").read_bytes()
    summary = records.summary(folders[0])
    np.testing.assert_equal(records.recomputed(folders[0]), summary)
    rows = [one | {"accuracy": 0.7} for one in records.rows(folders[0])]
    (folders[0] / "rounds.jsonl.gz").write_bytes(
        gzip.compress("".join(results.dumps(one) + "\n" for one in rows).encode())
    )
    with pytest.raises(AssertionError):
        np.testing.assert_equal(records.recomputed(folders[0]), summary)


def test_results_that_do_not_tell_their_data_are_not_shown(
    tmp_path: Path, calls: list[list[str]]
) -> None:
    out = finished(tmp_path / "out", None)
    assert run(None, out, False)
    assert len(calls) == 1
    records.publish(out, published(out))
    text, _ = pages(out)
    assert "Toy: not shown. The records are of an earlier program" in text
    assert "toy, 1 seeds" not in text


@pytest.mark.parametrize("is_planted", [True, False])
def test_tables_say_that_data_is_planted(is_planted: bool) -> None:
    summary = summary_of([row(CASES[0])], planted=is_planted)
    alike = {**summary, "results": {}}
    for table in (evaluate.table(summary), membership.table(alike)):
        assert ("Planted data" in str(table.caption)) == is_planted


def test_the_page_says_that_the_seeds_undo_the_mixing(tmp_path: Path) -> None:
    text = " ".join(report.text(tmp_path / "page.md", []).split())
    assert "whoever has the file and the program can undo the mixing" in text


@pytest.mark.parametrize(
    ("name", "pool", "says"),
    [
        ("watch", 10, "which 7 of 10 people take part (at most 120 ways)"),
        ("cifar10", 24, "deals images anew to 24 participants, of whom the server knows 4"),
    ],
)
def test_the_page_says_what_its_intervals_cover(name: str, pool: int, says: str) -> None:
    config = evaluate.Config(dataset=name)
    options = results.config_dict(config, tasks.resolve(config))
    data = DATA | {"pool": pool}
    summary = results.summarize([row(CASES[0])], options, data, {"conv": 9}, [session()])
    text = report.section(report.Entry("a", "A", options), summary)
    assert says in text
    assert "Of an earlier run" not in text
    changed = report.section(report.Entry("a", "A", options | {"rounds": 7}), summary)
    assert "**Of an earlier run**: its configuration has changed since, in rounds." in changed


# all sessions


def test_seconds_add_up_and_each_session_keeps_its_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    for cores, end in ((4, 130.0), (8, 175.0)):
        monkeypatch.setattr("os.cpu_count", lambda cores=cores: cores)
        sessions = provenance.Sessions(tmp_path, 100.0)
        # saved again and again, as after each trajectory
        for now[0] in (110.0, end):
            sessions.save()
        now[0] = 100.0
    kept = strictly((tmp_path / "sessions.json").read_text())
    assert [one["seconds"] for one in kept] == [30.0, 75.0]
    assert [one["environment"]["cpus"] for one in kept] == [4, 8]
    summary = results.summarize([row(CASES[0])], {"rounds": 1}, DATA, {}, kept)
    assert summary["seconds"] == 105.0
    assert summary["sessions"] == kept
    assert summary["environment"]["cpus"] == 8


@pytest.mark.parametrize("text", ["{", "[1]", '[{"environment": {}}]', '{"seconds": 1}'])
def test_damaged_sessions_are_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "sessions.json").write_text(text)
    with pytest.raises(mx.InputError, match=r"sessions with their seconds in .*sessions.json; it"):
        provenance.Sessions(tmp_path, 0.0)


def test_a_fresh_start_has_no_sessions_of_others(tmp_path: Path) -> None:
    options = {"figures": ["utility"], "resume": False, "overwrite": False}
    for step in ("new", "overwrite", "resume"):
        provenance.Sessions(tmp_path, 0.0).save()
        if step != "new":
            results.append(tmp_path / "rounds.jsonl", [row(CASES[0])])
        resume.open_folder(tmp_path, {"a": 1}, **options | ({step: True} if step != "new" else {}))
        assert (tmp_path / "sessions.json").exists() == (step == "resume")
