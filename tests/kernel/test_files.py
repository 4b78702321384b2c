"""Files that other programs write, too: replaced as a whole, and never in place of what another has just written."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from istio_init.errors import InitError
from istio_init.kernel.host import file_locks, files


def others_write(path: Path, text: str) -> None:
    """As a careful program does it: a new file, renamed."""
    fresh = path.with_name("fresh")
    fresh.write_text(text)
    fresh.rename(path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    result = tmp_path / "10-net.conflist"
    result.write_text("before")
    result.chmod(0o640)
    return result


def test_it_is_replaced_and_keeps_its_permissions(path: Path) -> None:
    files.replace(str(path), b"after", files.read(str(path)), 0o600)
    assert path.read_text() == "after"
    assert path.stat().st_mode & 0o777 == 0o640
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("times", [1, 2, 3])
def test_a_write_at_the_last_moment_is_kept(path: Path, times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the comparison and the exchange, and while the exchange is undone."""
    rename, left = files._rename, list(range(times))  # pop() gives 0 last

    def disturbed(old: str, new: str, flags: int) -> None:
        if left:
            others_write(path, f"another's {left.pop()}")
        rename(old, new, flags)

    monkeypatch.setattr(files, "_rename", disturbed)
    with pytest.raises(files.Changed, match="another program has written it"):
        files.replace(str(path), b"after", files.read(str(path)), 0o600)
    assert path.read_text() == "another's 0"
    assert os.listdir(path.parent) == [path.name]


def test_a_file_that_appears_at_the_last_moment_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, rename = tmp_path / "new", files._rename

    def disturbed(old: str, new: str, flags: int) -> None:
        path.write_text("another's")
        rename(old, new, flags)

    monkeypatch.setattr(files, "_rename", disturbed)
    with pytest.raises(files.Changed):
        files.replace(str(path), b"after", None, 0o600)
    assert path.read_text() == "another's"


def test_no_write_of_another_is_lost_among_many(path: Path) -> None:
    """The other one counts; what it wrote last is there in the end, or what was made of it."""
    stop, once = threading.Event(), threading.Event()

    def count() -> None:
        for number in range(1500):
            others_write(path, f"{number} ")
            if number == 750:
                # However the two threads take turns, a write of the main thread comes between.
                once.wait(60)
        stop.set()

    counter = threading.Thread(target=count)
    counter.start()
    while not stop.is_set():
        contents = files.read(str(path))
        assert contents
        try:
            files.replace(str(path), contents.data.split()[0] + b" ours", contents, 0o600)
            once.set()
        except files.Changed:
            continue
    counter.join()
    assert path.read_text().split()[0] == "1499"
    assert once.is_set()


def test_what_is_refused_is_one_line(tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for failing in ("fchmod", "fsync", "write"):
        with monkeypatch.context() as patch:
            if failing == "write":
                patch.setattr(files, "_write", refusing)
            else:
                patch.setattr(os, failing, refusing)
            with pytest.raises(InitError, match="can't be written: No space left on device; make room there"):
                files.replace(str(path), b"after", files.read(str(path)), 0o600)
    assert path.read_text() == "before"
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(InitError, match="not a regular file"):
        files.read(str(pipe))


def test_a_claim_on_a_file_that_is_gone_is_none(path: Path) -> None:
    with file_locks.FileClaim(str(path)) as claim:
        claim.renew()
        assert file_locks.is_claimed(str(path))
        path.unlink()
        claim.renew()
        path.touch()
        assert not file_locks.is_claimed(str(path))
        claim.renew()
        assert file_locks.is_claimed(str(path))


def refusing(*_: object) -> None:
    raise OSError(28, "No space left on device")
