"""What is declared is what is there: every pin within its bounds, every file in the wheel."""

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
DECLARED = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = DECLARED["project"]
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


def test_every_file_of_the_package_is_a_module_or_declared_as_its_data() -> None:
    patterns = DECLARED["tool"]["setuptools"]["package-data"]["mixjax"]
    package = ROOT / "mixjax"
    declared = {path for pattern in patterns for path in package.glob(pattern)}
    files = {path for path in package.rglob("*") if path.is_file()}
    others = {path for path in files if path.suffix not in {".py", ".pyc"}}
    assert package / "datasets" / "vowels.csv" in others
    assert others <= declared
