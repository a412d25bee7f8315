"""What is pinned is what is declared: every pin lies within the declared bounds."""

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CORE = [Requirement(line) for line in PROJECT["dependencies"]]
EXTRAS = [
    Requirement(line) for extra in PROJECT["optional-dependencies"].values() for line in extra
]


def pins(name: str) -> dict[str, str]:
    lines = [line.split("#")[0].strip() for line in (ROOT / name).read_text().splitlines()]
    pairs = [line.split("==") for line in lines if line]
    return {canonicalize_name(package): version for package, version in pairs}


@pytest.mark.parametrize("requirement", CORE + EXTRAS, ids=lambda one: one.name)
def test_a_pin_lies_within_the_declared_bounds(requirement: Requirement) -> None:
    version = pins("constraints.txt").get(canonicalize_name(requirement.name))
    assert version, f"{requirement.name} is not pinned in constraints.txt"
    assert requirement.specifier.contains(version), f"{requirement} excludes the pinned {version}"


@pytest.mark.parametrize("requirement", CORE, ids=lambda one: one.name)
def test_the_oldest_versions_are_the_lower_bounds(requirement: Requirement) -> None:
    (bound,) = [one.version for one in requirement.specifier if one.operator == ">="]
    assert pins("constraints-oldest.txt")[canonicalize_name(requirement.name)] == bound
