"""The control groups of this process: what a container or scheduler leaves it of the machine."""

from collections.abc import Iterator
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")


def folders(controller: str) -> Iterator[Path]:
    """Of the group that this process is in, and of all groups above it, for either version."""
    try:
        lines = OWN_CGROUP.read_text().splitlines()
    except OSError:
        lines = []
    for line in [*lines, "0::/"]:
        _, controllers, own = line.split(":", 2)
        root = CGROUPS / controller if controller in controllers.split(",") else CGROUPS
        group = Path(own.lstrip("/"))
        yield from (root / folder for folder in (group, *group.parents))


def numbers(*paths: Path) -> tuple[int, ...] | None:
    """All numbers in the files; None where one is missing, or "max"."""
    try:
        return tuple(int(text) for path in paths for text in path.read_text().split())
    except (OSError, ValueError):
        return None
