"""Files that appear complete, or not at all."""

import os
import stat
from pathlib import Path

import pytest

from mixjax.checkpoint import replacing


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_old_content_stays_until_the_new_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b"old")
    with replacing(path) as file:
        file.write(b"ne")
        file.flush()
        assert path.read_bytes() == b"old"
        assert len(names(tmp_path)) == 2
        (partial,) = (name for name in names(tmp_path) if name != "a.json")
        assert partial.startswith("a.json.")
        assert partial.endswith(".partial")
        file.write(b"w")
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["a.json"]


@pytest.mark.parametrize("before", [b"old", None])
@pytest.mark.parametrize("error", [ValueError, OSError, KeyboardInterrupt, SystemExit])
def test_an_exception_leaves_everything_as_it_was(
    tmp_path: Path, before: bytes | None, error: type[BaseException]
) -> None:
    path = tmp_path / "a.json"
    if before is not None:
        path.write_bytes(before)

    def write_half() -> None:
        with replacing(path) as file:
            file.write(b"half")
            raise error

    with pytest.raises(error):
        write_half()
    assert names(tmp_path) == ([] if before is None else ["a.json"])
    assert before is None or path.read_bytes() == before


def test_content_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, synced = tmp_path / "a.json", []

    def fsync(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_size)
        assert not path.exists()

    monkeypatch.setattr(os, "fsync", fsync)
    with replacing(path) as file:
        file.write(b"content")
    assert synced == [7]


def test_links_are_replaced_and_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    precious = tmp_path / "thesis"
    precious.write_bytes(b"years of work")
    (tmp_path / "a.json").symlink_to(precious)
    with replacing(tmp_path / "a.json") as file:
        file.write(b"new")
    assert not (tmp_path / "a.json").is_symlink()
    # not even where the partial file's name was foretold
    monkeypatch.setattr("secrets.token_hex", lambda size: "foretold")
    (tmp_path / "a.json.foretold.partial").symlink_to(precious)
    with pytest.raises(FileExistsError), replacing(tmp_path / "a.json") as file:
        file.write(b"newer")
    assert (tmp_path / "a.json").read_bytes() == b"new"
    assert precious.read_bytes() == b"years of work"


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0, 0o666)])
def test_the_mode_is_the_processes_or_the_callers(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        with replacing(tmp_path / "a"), replacing(tmp_path / "own", 0o600):
            # never open to others, not even while it is written
            modes = {
                path.name[:1]: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()
            }
            assert modes == {"a": mode, "o": 0o600}
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {"a": mode, "own": 0o600}


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "none" / "a"):
        pass
