"""Every published configuration at toy size, on planted data where the real set is not there."""

import json
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments import planted, report, reproduce, tasks

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
    problem = reproduce.run(setting, folder, out, synthetic)
    assert problem is None
    written = (out / "summary.json").stat().st_mtime_ns
    # finished work is not run again
    assert reproduce.run(setting, folder, out, synthetic) is None
    assert (out / "summary.json").stat().st_mtime_ns == written

    page = tmp_path / "docs" / "results.md"
    entry = report.Entry(file.stem, title, out, None)
    missing = report.Entry("other", "Another set", tmp_path / "nowhere", "no data")
    report.write(page, [entry, missing], quick=False)
    text = page.read_text()
    assert f"## {title}" in text
    assert ("**Planted data**" in text) == (synthetic or folder is not None)
    assert "## Another set\n\nNot run: no data" in text
    summary = json.loads((out / "summary.json").read_text())
    plain = summary["results"][0]
    assert f"{100 * plain['accuracy']['mean']:.1f} [" in text
    for unit, count in summary["parameters"].items():
        assert f"| {unit} | {count:,} |" in text
    rows = report.table(summary).splitlines()
    assert {row.count("|") for row in rows} == {rows[0].count("|")}
    for line in text.splitlines():
        if "](results/" in line:
            assert (page.parent / line.split("](")[1].rstrip(")")).is_file()


def test_the_planted_faces_suffice_for_their_configuration(tmp_path: Path) -> None:
    setting = tomllib.loads((reproduce.CONFIGS / "lfw.toml").read_text())
    task, clients = tasks.TASKS["lfw"], setting["participants"]
    folder = reproduce.PLANTED["lfw"](tmp_path)
    data = task.load(folder, clients + task.auxiliary, setting["per_client"])
    np.testing.assert_array_equal(data.train.counts, setting["per_client"])
    assert len(data.train.counts) == clients + task.auxiliary


def entry_of(mean: float, width: float = 0.01) -> dict[str, float]:
    return {"mean": mean, "low": mean - width, "high": mean + width, "n": 3}


@pytest.mark.parametrize(("attack", "gap", "verdicts"), [(0.5, 0.0, "yes"), (0.95, 0.1, "**no**")])
def test_claims_follow_from_the_intervals(attack: float, gap: float, verdicts: str) -> None:
    def case(defence: str, **found: Any) -> dict[str, Any]:
        keys = {"defence": defence, "attack": "passive", "parameters": {}}
        return keys | {"accuracy": entry_of(0.8)} | found

    summary = {
        "chance": 0.5,
        "results": [
            case("none", attribution_accumulated=entry_of(0.95)),
            case(
                "mixnn",
                attribution_accumulated=entry_of(attack),
                accuracy_minus_none=entry_of(gap),
            ),
        ],
    }
    entry = report.Entry("toy", "Toy", Path(), None)
    lines = report.claims([(entry, summary)]).splitlines()
    found = {
        line.split(" | ")[0][2:]: line.split(" | ")[-1].rstrip(" |")
        for line in lines[3:]
        if line[:2] == "| "
    }
    assert found["Mixing keeps the utility of classic federated learning"] == verdicts
    assert found["MixNN significantly limits the inference, passive"] == verdicts
    assert found["∇Sim infers the attribute, passive"] == "yes"
