"""The evaluation at toy size, as a user would run it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import jax
import numpy as np
import pytest
import rich.console

import mixjax as mx
from experiments import (
    cli,
    conditions,
    evaluate,
    figures,
    members,
    membership,
    options,
    report,
    results,
    scenarios,
    tasks,
    training,
)
from experiments.conditions import Case

SESSIONS: list[dict[str, Any]] = [{"environment": {"jax": "0"}, "seconds": 1.0}]
INTERVAL = {"mean", "low", "high", "n"}
FIGURES = {
    "utility",
    "attack",
    "attack_accumulated",
    "background",
    "participants",
    "layers",
    "frontier",
}


def run(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "experiments.evaluate", *options]
    root = Path(__file__).parents[1]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("toy")
    options = ["--defences", "none", "shuffle", "mixnn_proxy", "--attacks", "passive"]
    options += ["--rounds", "2", "--seeds", "2", "--auxiliary", "2", "--out", str(out)]
    done = run(*options)
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def test_it_leaves_a_line_for_each_seed_defence_attack_and_round(toy: tuple[Path, str]) -> None:
    rows = [json.loads(line) for line in (toy[0] / "rounds.jsonl").read_text().splitlines()]
    keys = {(row["seed"], row["defence"], row["attack"], row["round"]) for row in rows}
    assert len(rows) == len(keys) == 2 * 3 * 1 * 2


def test_the_summary_has_intervals_for_every_case(toy: tuple[Path, str]) -> None:
    summary: dict[str, Any] = json.loads((toy[0] / "summary.json").read_text())
    assert {"config", "data", "environment", "seconds", "chance", "results"} <= summary.keys()
    assert summary["data"]["planted"] is False
    (session,) = summary["sessions"]
    assert session == {k: summary[k] for k in ("environment", "seconds")}
    assert [entry["defence"] for entry in summary["results"]] == ["none", "shuffle", "mixnn_proxy"]
    for entry in summary["results"]:
        for name in (*results.FIGURES_OF_A_CASE, "best_unit_level", "best_unit_accumulated"):
            assert entry[name].keys() == INTERVAL
            assert 0 <= entry[name]["low"] <= entry[name]["mean"] <= entry[name]["high"] <= 1
            assert entry[name]["n"] == 2
        for name in results.PAIRED:
            assert np.mean(entry["by_seed"][name]) == pytest.approx(entry[name]["mean"])
        for name in ("unit_level", "unit_accumulated"):
            assert all(unit.keys() == INTERVAL for unit in entry[name].values())
    plain, shuffle, proxy = summary["results"]
    # what no permutation changes, to the last bit: utility, single layers, what they tell together
    for name in ("accuracy", "accuracy_outsiders", "unit_level", "unit_accumulated", "cohort"):
        assert plain[name] == shuffle[name] == proxy[name]
    assert plain["cohort"]["mean"] > plain["cohort_chance"]["mean"] + 0.1
    # an update is somebody's, and guesses come by chance of whose they are taken for
    assert plain["attribution_accumulated"]["mean"] > 0.9
    for mixed in (shuffle, proxy):
        for name in ("auc", "balanced_accuracy_accumulated", "attribution_accumulated"):
            assert mixed[name]["mean"] == pytest.approx(0.5, abs=0.05)
        assert mixed["attribution_accumulated"]["mean"] == pytest.approx(
            mixed["permuted_accumulated"]["mean"], abs=0.02
        )
        assert mixed["aggregate_difference"] < 1e-5
        assert mixed["aggregate_exact"] is True
    assert "aggregate_difference" not in plain
    assert [e["parameters"] for e in summary["results"]] == [{}, {}, {"list_size": 5}]
    assert plain["attribution"]["mean"] > 0.9


def test_it_draws_its_figures_and_prints_a_table(toy: tuple[Path, str]) -> None:
    for kind in ("png", "svg"):
        assert {path.stem for path in toy[0].glob(f"*.{kind}")} >= FIGURES
    assert not list(toy[0].glob("*.partial"))
    assert "plain FL" in toy[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--defences", "none", "prayer"), "invalid choice 'prayer'"),
        (("--speed", "9"), "Unrecognized options: --speed"),
        (("--auxiliary", "9"), "expected --auxiliary in 1..8"),
        (("--rounds", "0"), "expected --rounds of at least 1"),
        (("--noise", "-1"), "greater than 0 for --noise"),
        (("--list-size", "0"), "expected --list-size of at least 1"),
        (("--defences", "top_k", "--kept", "2"), "fraction"),
        (("--defences", "top_k", "--kept"), "a value or more for the parameters of `top_k`"),
    ],
)
def test_bad_options_are_refused_in_a_sentence(
    options: tuple[str, ...],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["evaluate", *options])
    with pytest.raises(SystemExit) as left:
        cli.command(evaluate.main, evaluate.Config, "experiments.evaluate", devices=False)
    assert left.value.code == 2
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said


def test_a_row_is_all_that_a_new_defence_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    row = conditions.Defence(
        "clipped to {clip_norm:g}",
        "#123456",
        cases=lambda task: [{"clip_norm": norm} for norm in (1.0, task.clip_norm)],
        perturb=lambda clip_norm: mx.defences.clipped(clip_norm),
        epsilon=lambda rounds, delta, clip_norm: rounds * clip_norm,
    )
    monkeypatch.setitem(conditions.DEFENCES, "clip", row)
    options: Any = {"defences": ("none", "shuffle", "clip"), "attacks": ("passive",)}
    config = evaluate.Config(**options, rounds=1, seeds=2)
    task = tasks.resolve(config)
    evaluate.check(config, task)
    jobs = evaluate.plan(config, task)
    clipped = [Case("clip", "passive", (("clip_norm", norm),)) for norm in (1.0, 4.0)]
    assert [job.cases for job in jobs] == [
        [Case("none", "passive"), Case("shuffle", "passive")],
        *([case] for case in clipped),
    ]
    assert not jobs[1].sweep
    assert [case.label for case in clipped] == ["clipped to 1", "clipped to 4"]

    rows = [row_of(case, seed) for seed in range(2) for job in jobs for case in job.cases]
    assert all(Case.of(json.loads(json.dumps(one))) == Case.of(one) for one in rows)
    summary = results.summarize(
        rows, results.config_dict(config, task), {"planted": False}, {"conv": 9}, SESSIONS
    )
    assert [entry.get("epsilon") for entry in summary["results"]] == [None, None, 1.0, 4.0]
    rich.console.Console(width=200).print(evaluate.table(summary))
    for text in (capsys.readouterr().out, report.table(summary)):
        assert all(case.label in text for case in clipped)
    drawn = figures.draw_all(rows, tmp_path)
    assert {path.stem for path in drawn} >= {"utility", "frontier", "participants"}


def row_of(case: Case, seed: int) -> dict[str, Any]:
    numbers = dict.fromkeys(results.FIGURES_OF_A_CASE, 0.5)
    keys = {"seed": seed, **case.keys(), "round": 1, "excluded": 0, "stepped": True, "diverged": []}
    units = {"unit_level": {"conv": 0.5}, "unit_accumulated": {"conv": 0.5}}
    return keys | numbers | units | {"participants": [0.4, 0.6]}


def test_options_name_every_row_and_nothing_else() -> None:
    for names, rows in (
        (options.DatasetName, tasks.TASKS),
        (options.DefenceName, conditions.DEFENCES),
        (options.AttackName, conditions.ATTACKS),
        (options.StudyName, scenarios.STUDIES),
    ):
        assert get_args(names) == tuple(rows)


@pytest.mark.parametrize("module", ["adversaries", "evaluate", "membership", "reproduce"])
def test_options_are_told_before_anything_slow_is_imported(module: str) -> None:
    program = f"""
import runpy, sys
sys.argv = ["{module}", "--help"]
try:
    runpy.run_module("experiments.{module}", run_name="__main__")
except SystemExit as left:
    assert left.code == 0
slow = {{"jax", "flax", "optax", "scipy", "matplotlib", "tensorflow_datasets"}} & set(sys.modules)
assert not slow, slow
"""
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_row_has_a_colour_of_its_own_and_a_label() -> None:
    task = tasks.TASKS["watch"]
    cases = conditions.cases(conditions.DEFENCES, "passive", task)
    looks = {(row.color, row.line) for row in conditions.DEFENCES.values()}
    assert len(looks) == len(conditions.DEFENCES)
    assert len({case.label for case in cases}) == len(cases)
    for case in cases:
        static, traced = case.split_traced()
        assert not any(name in dict(static.parameters) for name in traced)
        assert dict(static.with_traced(traced).parameters) == pytest.approx(dict(case.parameters))
        # one object, so that one program serves all cases with the same mixing
        assert case.mix() is Case(case.defence, "active", case.parameters).mix()


def test_an_option_that_is_given_takes_the_place_of_the_datasets_own() -> None:
    own = tasks.TASKS["lfw"]
    task = tasks.resolve(evaluate.Config(dataset="lfw", epochs=7, noise=(), list_size=3))
    assert task == own._replace(epochs=7, noise=(), list_size=3)
    config = evaluate.Config(dataset="lfw")
    written = results.config_dict(config, tasks.resolve(config))
    assert written["noise"] == list(own.noise)
    assert None not in written.values()


def test_the_best_layer_is_chosen_on_other_seeds() -> None:
    def of(seed: int, **units: float) -> list[dict[str, Any]]:
        return [row_of(Case("none", "passive"), seed) | {"unit_level": units}]

    # each seed's own best is what the others find worse
    seeds = {0: of(0, a=1.0, b=0.4), 1: of(1, a=0.5, b=0.9), 2: of(2, a=0.5, b=0.9)}
    units = {unit: results.average_unit(unit) for unit in "ab"}
    found = results.best_elsewhere(seeds, units)
    assert found.mean == pytest.approx(np.mean([0.4, 0.5, 0.5]))
    assert np.isnan(results.best_elsewhere({0: seeds[0]}, units).mean)


def test_the_reversed_control_is_the_same_people_and_nearly_the_same_training() -> None:
    options: dict[str, Any] = {"defences": ("none", "reversed"), "dataset": "vowels"}
    config = evaluate.Config(**options, attacks=("passive", "adaptive", "active"), rounds=2)
    task = tasks.resolve(config)
    assert [job.cases for job in evaluate.plan(config, task) if job.trained.row.reverse] == [
        [Case("reversed", "passive")]
    ]
    split = training.split_people(mx.datasets.vowels(), 0, task.auxiliary, sweep=False)
    back = split.reversed().reversed()
    for one, other in zip(jax.tree.leaves(split), jax.tree.leaves(back), strict=True):
        np.testing.assert_array_equal(one, other)
    assert split.reversed().train.ids.tolist() == split.train.ids.tolist()[::-1]


def test_membership_is_judged_behind_each_defence(tmp_path: Path) -> None:
    options: dict[str, Any] = {"dataset": "vowels", "defences": ("none", "mixnn", "sum_only")}
    config = membership.Config(**options, rounds=1, seeds=1, shadows=4, out=tmp_path)
    membership.main(config)
    entries = json.loads((tmp_path / "summary.json").read_text())["results"]
    assert set(entries) == {"plain FL", "MixNN", "sum only"}
    for entry in entries.values():
        assert entry.pop("excluded") == 0
        # 11 people, 11 vowels, three of six
        assert entry.pop("members") == entry.pop("others") == 363
        assert set(entry) == set(members.FIGURES)
        for interval in entry.values():
            assert set(interval) == INTERVAL
            assert 0 <= interval["mean"] <= 1
            # of one seed there is no interval
            assert interval["low"] is interval["high"] is None
    assert len((tmp_path / "rounds.jsonl").read_text().splitlines()) == 3


def test_candidates_are_drawn_anew_and_matched_by_class() -> None:
    split = training.split_people(mx.datasets.vowels(), 0, 4, sweep=False)
    # a person with an odd number of records of a class
    split = split._replace(train=split.train._replace(counts=split.train.counts - 1))
    records = membership.draw(0, split, 5)
    people = np.concatenate([split.train.examples.labels, split.test.examples.labels], axis=1)
    assert records.used.shape == (5, *records.examples.labels.shape)
    assert people.shape[1] == records.examples.labels.shape[1] + 1
    for run, used in enumerate(records.used):
        rows = records.rows[run]
        for client, own in enumerate(used):
            chosen = rows[client][rows[client] >= 0]
            assert sorted(chosen) == np.flatnonzero(own).tolist()
    labels = np.asarray(records.examples.labels)
    member = records.used[0] & records.candidates
    other = ~records.used[0] & records.candidates
    for client in range(len(labels)):
        counts = [np.bincount(labels[client][part[client]]) for part in (member, other)]
        np.testing.assert_array_equal(*counts)
    assert records.candidates.sum() == 11 * (66 - 2)
    assert not np.array_equal(records.used[0], records.used[1])
    real = records.used[1:3].any(axis=0)
    assert real.sum() == 11 * 65
    np.testing.assert_array_equal(records.used[1:].sum(axis=0), np.where(real, 2, 0))
    again = membership.draw(0, split, 5)
    np.testing.assert_array_equal(again.used, records.used)
    assert not np.array_equal(membership.draw(1, split, 5).used, records.used)
