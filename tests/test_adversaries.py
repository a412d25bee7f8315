"""A server that does all it can: it undoes mixing, and the tables say so in the right places."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rich.console

import mixjax as mx
from experiments import adversaries, curves, evaluate, results, scenarios, tasks, training
from experiments.scenarios import Scenario

TINY = [Scenario("plain FL", "nothing"), Scenario("shuffle", "updates"), Scenario("MixNN")]
CONFIG = adversaries.Config(dataset="vowels", rounds=3, seeds=1)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("adversaries")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(scenarios.STUDIES, "defences", lambda task, classes: TINY)
        patch.setitem(scenarios.STUDIES, "noise", lambda task, classes: [TINY[2]])
        studies = ("defences", "noise")
        adversaries.main(dataclasses.replace(CONFIG, studies=studies, out=out))
    return out, json.loads((out / "adversaries.json").read_text())


def test_what_is_joined_and_followed_is_plain_learning(ran: Any) -> None:
    rows = ran[1]["studies"]["defences"]
    plain, shuffled, mixed = (rows[scenario.label][0] for scenario in TINY)
    assert plain["participants"] == 11
    assert mixed["units"] == 3
    assert mixed["chance_exact"] == pytest.approx(1 / 121)
    for row in (shuffled, mixed):
        # training is the same, so must be what a server knows of who it is
        assert row["accuracy"] == plain["accuracy"]
        assert row["tracks"] == plain["tracks"] == plain["slots"]
        assert row["exact"] == row["joined"] == row["purity"] == row["rand"] == 1
        assert row["source"] == plain["source"] > 2 * row["chance_source"]
        assert row["membership"] == plain["membership"] > 0.5
        assert row["named"] < 1 == plain["named"]
    # a slot's model is nobody's
    assert mixed["slot_source"] < mixed["source"]
    assert 1 / 11 < mixed["chance_purity"] < 0.7


def test_it_goes_on_where_it_was_stopped_and_refuses_other_options(
    ran: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, before = ran
    monkeypatch.setitem(scenarios.STUDIES, "defences", lambda task, classes: TINY)
    monkeypatch.setattr(adversaries, "one_seed", lambda *args: pytest.fail("trained again"))
    adversaries.main(dataclasses.replace(CONFIG, out=out))
    assert json.loads((out / "adversaries.json").read_text()) == before
    with pytest.raises(mx.InputError, match="the same config"):
        adversaries.main(dataclasses.replace(CONFIG, out=out, rounds=4))
    with pytest.raises(mx.InputError, match="expected recordings"):
        adversaries.main(dataclasses.replace(CONFIG, out=out, studies=("architectures",)))


def test_tables_fit_a_terminal_and_curves_are_drawn(ran: Any) -> None:
    out, content = ran
    assert (out / "noise.png").read_bytes()[:4] == b"\x89PNG"
    assert not (out / "defences.png").exists()
    console = rich.console.Console(width=80, record=True)
    console.print(curves.table(content, "defences"))
    text = console.export_text()
    assert "…" not in text
    assert all(len(line) <= 80 for line in text.splitlines())
    assert all(scenario.label in text for scenario in TINY)


def test_who_sends_crafted_models_has_names_and_a_sum_alone_has_none() -> None:
    chosen = (
        Scenario("a", crafts="isolate", granularity="neurons"),
        Scenario("b", "nothing", crafts="isolate", summed=True),
        Scenario("c", crafts="tag", uploads="models"),
        Scenario("d", "nothing", summed=True),
    )
    task = tasks.TASKS["vowels"]
    dataset = mx.datasets.vowels()
    isolated, in_sum, tagged, summed = (
        adversaries.one_seed(scenario, CONFIG, task, dataset, 0) for scenario in chosen
    )
    # two of three rounds isolate somebody; a neuron that never fires is nobody's
    assert isolated["named"] > 0.9
    assert in_sum["named"] == in_sum["exact"] == tagged["named"] == tagged["exact"] == 1
    assert isolated["stepped"] == in_sum["stepped"] == pytest.approx(1 / 3)
    assert summed["named"] == 0
    assert np.isnan(summed["exact"])
    # one guess for all
    assert min(summed["slots"]) >= 1 - summed["chance"]
    assert max(summed["slots"]) <= summed["chance"]


@pytest.mark.parametrize("study", scenarios.STUDIES)
def test_every_study_has_scenarios_of_its_own_that_make_sense(study: str) -> None:
    task = tasks.TASKS["watch"]
    chosen = scenarios.STUDIES[study](task, 7)
    assert len({scenario.label for scenario in chosen}) == len(set(chosen)) > 2
    for scenario in chosen:
        scenario.task(task)
        scenario.optimizer(task)
        scenario.participation(14)
        assert scenario.defence(task).mix is not None
        private = scenario.sigma > 0 or scenario.central > 0
        assert (scenario.epsilon(task, 10, 1e-5) is not None) == private


def test_more_people_are_dealt_halves_and_fewer_are_chosen() -> None:
    dataset = mx.datasets.vowels()
    split = training.split_people(dataset, 0, 4, sweep=False)
    many = adversaries.dealt(split, 40, 0)
    assert many.train.counts.tolist() == [22] * 40
    assert np.bincount(many.truth, minlength=2).min() > 5
    own = np.asarray(split.train.examples.inputs).reshape(-1, 10)
    for person in range(40):
        rows = np.asarray(many.train.examples.inputs[person])
        assert len(np.unique(rows, axis=0)) == 22
        assert (rows[:, None] == own).all(axis=2).any(axis=1).all()
    few = adversaries.dealt(split, 5, 0)
    assert len(few.truth) == len(few.test.counts) == 5


def test_the_evaluations_adaptive_server_undoes_the_proxy(tmp_path: Path) -> None:
    config = evaluate.Config(
        dataset="vowels",
        defences=("none", "shuffle", "mixnn"),
        attacks=("passive", "adaptive"),
        rounds=3,
        seeds=1,
        out=tmp_path,
    )
    evaluate.main(config)
    summary = results.read_summary(tmp_path / "summary.json")
    found = {
        (entry["defence"], entry["attack"]): entry["attribution_accumulated"]["mean"]
        for entry in summary["results"]
    }
    plain = found["none", "passive"]
    assert plain > 0.6
    for defence in ("none", "shuffle", "mixnn"):
        assert found[defence, "adaptive"] == pytest.approx(plain, abs=1e-6)
    for defence in ("shuffle", "mixnn"):
        assert abs(found[defence, "passive"] - 0.5) < 0.1
