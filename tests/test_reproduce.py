"""Every published configuration at toy size, on planted data where the real set is not there."""

import tomllib
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import mixjax as mx
from experiments import (
    claims,
    evaluate,
    members,
    planted,
    records,
    report,
    reproduce,
    takeaways,
    tasks,
)

FILES = sorted(reproduce.CONFIGS.glob("*.toml"))
TOY = {
    "attacks": ["passive"],
    "defences": ["none", "shuffle"],
    "rounds": 1,
    "seeds": 1,
    "participants": 6,
    "per_client": 40,
}


def folder_of(dataset: str, path: Path) -> Path | None:
    if dataset == "cifar10":
        return planted.cifar10(path, test=1200)
    if dataset == "fashion_mnist":
        return planted.fashion_mnist(path, test=1200)
    if dataset == "verb_agg":
        return planted.verb_agg(path, people=316)
    return None


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_configuration_runs_and_has_its_section(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    setting: dict[str, Any] = tomllib.loads(file.read_text())
    title, synthetic = setting.pop("title"), setting.pop("planted", False)
    assert setting.pop("quick")
    setting |= TOY
    out = tmp_path / "out"
    folder = folder_of(setting["dataset"], tmp_path)
    page = tmp_path / "docs" / "results.md"
    published = records.beside(page) / file.stem
    assert reproduce.run(setting, folder, out, synthetic, published) is None
    written = (out / "summary.json").stat().st_mtime_ns
    # finished work is not run again
    assert reproduce.run(setting, folder, out, synthetic, published) is None
    assert (out / "summary.json").stat().st_mtime_ns == written
    # nor is what was published
    elsewhere = tmp_path / "elsewhere"
    assert reproduce.run(setting, folder, elsewhere, synthetic, published) is None
    assert not elsewhere.exists()

    entry = report.Entry(file.stem, title, reproduce.asked(setting)[2])
    missing = report.Entry("other", "Another set", {})
    report.write(page, [entry, missing], quick=False)
    summary = records.summary(published)
    assert summary is not None
    is_planted = synthetic or folder is not None
    assert summary["data"]["planted"] == is_planted
    real, of_planted = page.read_text(), page.with_name("planted.md").read_text()
    assert "* Another set: not run." in real
    shown, other = (of_planted, real) if is_planted else (real, of_planted)
    assert f"## {title}" in shown
    assert f"## {title}" not in other
    assert "Of an earlier run" not in shown
    assert ("**Planted data.**" in shown) == is_planted
    assert ("](results/" in shown) == (not is_planted)
    plain = summary["results"][0]
    assert f"| {100 * plain['accuracy']['mean']:.1f} |" in shown
    for unit, count in summary["parameters"].items():
        assert f"| {unit} | {count:,} |" in shown
    lines = report.table(summary).splitlines()
    assert {line.count("|") for line in lines} == {lines[0].count("|")}
    for line in shown.splitlines():
        for target in line.split("](results/")[1:]:
            assert (page.parent / "results" / target.split(")")[0]).is_file()


def test_membership_runs_and_has_its_section(tmp_path: Path) -> None:
    setting = reproduce.configurations(quick=True)["membership_vowels"]
    options = setting.options | {"rounds": 1, "seeds": 2, "epochs": 1, "shadows": 4}
    page, out = tmp_path / "docs" / "results.md", tmp_path / "out"
    published = records.beside(page) / "membership_vowels"
    for place in (out, tmp_path / "elsewhere"):
        problem = reproduce.run(options, None, place, False, published, command="membership")
        assert problem is None
    # what is published is not run again
    assert not (tmp_path / "elsewhere").exists()
    config = reproduce.asked(options, "membership")[2]
    text = report.text(page, [report.Entry("membership_vowels", "Members", config)])
    assert "## Members\n\n1 rounds, 2 seeds" in text
    assert "which 363 others allow 3." in text
    summary = records.summary(published)
    np.testing.assert_equal(records.recomputed(published), summary)
    assert summary is not None
    lines = members.markdown(summary).splitlines()
    assert {line.count("|") for line in lines} == {8}
    assert [line.split(" | ")[0][2:] for line in lines[2:-1]] == list(summary["results"])


def test_the_planted_faces_suffice_for_their_configuration(tmp_path: Path) -> None:
    setting = tomllib.loads((reproduce.CONFIGS / "lfw.toml").read_text())
    task, clients = tasks.TASKS["lfw"], setting["participants"]
    folder = reproduce.PLANTED["lfw"](tmp_path)
    data = task.load(folder, clients + task.auxiliary, setting["per_client"], 0, 0.8)
    np.testing.assert_array_equal(data.train.counts, setting["per_client"])
    assert len(data.train.counts) == clients + task.auxiliary


def test_seeds_deal_other_images_and_resuming_deals_the_same(tmp_path: Path) -> None:
    config = evaluate.Config(dataset="lfw", participants=4, per_client=20)
    task = tasks.resolve(config)
    folder = reproduce.PLANTED["lfw"](tmp_path)
    first, second, again = (tasks.load(config, task, folder, seed=seed) for seed in (0, 1, 1))
    assert not np.array_equal(first.train.examples.inputs, second.train.examples.inputs)
    for one, other in zip(jax.tree.leaves(second), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(one, other)


def test_real_sets_have_ten_seeds_or_more() -> None:
    for setting in reproduce.configurations().values():
        assert setting.planted or setting.options["seeds"] >= 10


def summary_of(
    rng: np.random.Generator, means: dict[str, tuple[float, float]], seeds: int
) -> dict[str, Any]:
    """Entries of defences with a mean accuracy and attack."""

    def entry(defence: str, accuracy: float, attack: float) -> dict[str, Any]:
        drawn = {
            "accuracy": (accuracy + rng.normal(0, 0.003, seeds)).tolist(),
            "attribution_accumulated": (attack + rng.normal(0, 0.003, seeds)).tolist(),
            "chance": [0.5] * seeds,
        }
        intervals = {name: mx.evaluation.student(drawn[name])._asdict() for name in drawn}
        return {
            "defence": defence,
            "attack": "passive",
            "parameters": {"sigma": 0.1, "clip_norm": 1.0} if defence == "noisy" else {},
            "by_seed": drawn,
            "aggregate_difference": 3e-7,
            "aggregate_exact": True,
            **intervals,
        }

    return {"results": [entry(name, *pair) for name, pair in means.items()]}


def verdicts(means: dict[str, tuple[float, float]], seeds: int = 10) -> dict[str, str]:
    summary = summary_of(np.random.default_rng(0), means, seeds)
    lines = claims.table(claims.claims("toy", summary)).splitlines()[2:]
    return {line.split(" | ")[0][2:]: line.split(" | ")[-1].rstrip(" |") for line in lines}


SAME = "Mixing keeps the utility of classic federated learning, within 1 point"
LESS = "MixNN significantly limits the inference, passive"
THAN = "MixNN limits the inference more than an anonymous shuffle, passive"
MORE = "MixNN limits the inference more than noise does, at no lower utility"
COST = "Noise damages utility"
FOUND = "∇Sim infers the attribute, passive"


def test_claims_follow_from_paired_tests_and_a_wide_interval_helps_none() -> None:
    good = {"none": (0.8, 0.95), "shuffle": (0.8, 0.5), "mixnn": (0.8, 0.5), "noisy": (0.7, 0.9)}
    shown = {SAME: "yes", LESS: "yes", THAN: "**no**", MORE: "yes", COST: "yes", FOUND: "yes"}
    assert verdicts(good) == shown
    bad = {"none": (0.8, 0.5), "shuffle": (0.8, 0.5), "mixnn": (0.7, 0.6), "noisy": (0.8, 0.5)}
    assert set(verdicts(bad).values()) == {"**no**"}
    # two seeds that differ by tenths of a point decide nothing about a point
    assert verdicts(good, seeds=1) == dict.fromkeys(shown, "undecided")
    near = good | {"mixnn": (0.792, 0.5)}
    assert verdicts(near, seeds=3)[SAME] == "undecided"
    worse = good | {"mixnn": (0.6, 0.5)}
    assert verdicts(worse)[MORE] == "**no**"


def test_the_identity_stands_beside_the_reversed_sum() -> None:
    means = {"none": (0.8, 0.9), "mixnn": (0.8, 0.5), "reversed": (0.78, 0.9)}
    row = claims.identity("toy", summary_of(np.random.default_rng(0), means, 10))
    assert row is not None
    cells = row.strip("| ").split(" | ")
    assert cells[:3] == ["toy", "3.0e-07", "yes"]
    assert len(cells) == claims.IDENTITY.splitlines()[0].count("|") - 1
    assert cells[5].startswith(("-1.", "-2."))
    assert float(cells[6]) > 2


def test_what_to_take_away_is_computed_from_the_set_that_has_it() -> None:
    means = {"none": (0.8, 0.9), "mixnn": (0.8, 0.52), "shuffle": (0.8, 0.51)}
    summary = summary_of(np.random.default_rng(0), means, 10)
    permuted = mx.evaluation.student([0.5] * 10)._asdict()
    for entry in summary["results"]:
        entry["permuted_accumulated"] = permuted
    told = takeaways.sentences([("toy", "a-toy", summary)])
    assert told.startswith("1. **Mixing costs no utility")
    assert "on 1 of 1 sets" in told
    share = 100 * summary["results"][0]["attribution_accumulated"]["mean"]
    assert f"right for {share:.1f} % under plain FL" in told
    assert "[toy](#a-toy)" in told
    # nothing is said of servers and defences that were not run
    assert len(told.splitlines()) == 2
    assert takeaways.sentences([]) == ""
    assert report.anchor("CIFAR10 (a JPEG copy): which?") == "cifar10-a-jpeg-copy-which"
