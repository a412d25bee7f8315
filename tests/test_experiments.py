"""The evaluation at toy size, as a user would run it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from experiments import cli, evaluate, membership

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
    assert {"config", "environment", "seconds", "chance", "results"} <= summary.keys()
    assert [entry["defence"] for entry in summary["results"]] == ["none", "shuffle", "mixnn_proxy"]
    for entry in summary["results"]:
        for name in ("accuracy", "attribution", "attribution_accumulated", "set_level"):
            assert entry[name].keys() == INTERVAL
            assert entry[name]["low"] <= entry[name]["mean"] <= entry[name]["high"]
            assert entry[name]["n"] == 2
        assert all(unit.keys() == INTERVAL for unit in entry["unit_level"].values())
    plain, shuffle, proxy = summary["results"]
    # what no permutation changes: utility, single layers, and the whole-update guesses' multiset
    assert plain["accuracy"] == shuffle["accuracy"] == proxy["accuracy"]
    for unit, interval in plain["unit_level"].items():
        assert interval == pytest.approx(shuffle["unit_level"][unit])
    assert plain["set_level"] == shuffle["set_level"]
    assert proxy["list_size"] == 5
    assert plain["attribution"]["mean"] > 0.9


def test_it_draws_its_figures_and_prints_a_table(toy: tuple[Path, str]) -> None:
    drawn = {path.stem for path in toy[0].glob("*.png")}
    assert drawn >= FIGURES
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


def test_membership_is_judged_behind_each_defence(tmp_path: Path) -> None:
    config = membership.Config(rounds=1, seeds=1, records=4, kept=(), noise=(), out=tmp_path)
    membership.main(config)
    results = json.loads((tmp_path / "membership.json").read_text())["results"]
    assert set(results) == {"plain FL", "MixNN"}
    for measures in results.values():
        assert set(measures) == {"auc", "true_positive_rate"}
        for interval in measures.values():
            assert set(interval) == INTERVAL
            assert 0 <= interval["low"] <= interval["mean"] <= interval["high"] <= 1
