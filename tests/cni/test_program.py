"""The plugin's bundle among a host's plugins: whole before its name means it, gone when nobody starts it any more."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from istio_init.cni.node.conflist import PLUGIN
from istio_init.cni.node.program import INTERPRETER, LAUNCHER, LINKER, LONGEST_LINE, digest, install, remove
from istio_init.errors import InitError
from istio_init.kernel.host.files import PARTIAL


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    path = tmp_path / "bin"
    path.mkdir()
    (path / "bridge").write_text("another's")
    return path


def bundle(directory: Path, says: str) -> str:
    """A bundle that differs from others in what it says."""
    (directory / says / "lib").mkdir(parents=True)
    for name in (LINKER, INTERPRETER, "lib/libc.so.6"):
        (directory / says / name).write_text(name)
    (directory / says / LINKER).chmod(0o755)
    (directory / says / LAUNCHER).write_text(f"print({says!r})\n")
    return str(directory / says)


def names(programs: Path) -> set[str]:
    return {path.name for path in programs.iterdir()}


def test_a_bundle_is_installed_replaced_and_removed(tmp_path: Path, programs: Path) -> None:
    sources = [bundle(tmp_path, says) for says in ("one", "two", "three")]
    homes = [f"{PLUGIN}.{digest(source)}" for source in sources]
    assert len(set(homes)) == len(sources)
    for number, source in enumerate(sources):
        assert install(source, str(programs))
        assert not install(source, str(programs))
        script = programs / PLUGIN
        home = programs / homes[number]
        line = f"#!{home}/{LINKER} {home}/{INTERPRETER}\n"
        assert script.read_text() == line + Path(source, LAUNCHER).read_text()
        assert script.stat().st_mode & 0o777 == 0o755
        assert (home / LINKER).stat().st_mode & 0o777 == 0o755
        # The one before is kept for those who are running from it.
        assert names(programs) == {"bridge", PLUGIN, *homes[max(0, number - 1) : number + 1]}
    # Back to the one before the last, which exists already.
    assert install(sources[1], str(programs))
    assert names(programs) == {"bridge", PLUGIN, homes[1], homes[2]}
    assert remove(str(programs))
    assert names(programs) == {"bridge"}
    assert not remove(str(programs))


def test_a_bundle_takes_the_place_of_a_program_and_the_other_way_round(tmp_path: Path, programs: Path) -> None:
    source, single = bundle(tmp_path, "one"), tmp_path / "single"
    single.write_text("#!/bin/sh\n")
    for arguments, there in ((str(single), {PLUGIN}), (source, {PLUGIN, f"{PLUGIN}.{digest(source)}"})):
        assert install(arguments, str(programs))
        assert names(programs) == {"bridge", *there}
    assert install(str(single), str(programs))
    assert (programs / PLUGIN).read_text() == single.read_text()


def test_what_a_killed_run_left_half_copied_is_taken_away(tmp_path: Path, programs: Path) -> None:
    source = bundle(tmp_path, "one")
    half = programs / f"{PARTIAL}{PLUGIN}.{digest(source)}"
    half.mkdir()
    (half / "python3").touch()
    other = programs / f"{PARTIAL}{PLUGIN}.0123456789abcdef"
    other.mkdir()
    assert install(source, str(programs))
    assert names(programs) == {"bridge", PLUGIN, f"{PLUGIN}.{digest(source)}"}


def test_what_changes_the_digest(tmp_path: Path) -> None:
    source = bundle(tmp_path, "one")
    observed = {digest(source)}
    for path in sorted(Path(source).rglob("*")):
        if path.is_file():
            before = path.stat().st_mode
            path.chmod(0o700)
            observed.add(digest(source))
            path.chmod(before)
            text = path.read_text()
            path.write_text(text + " ")
            observed.add(digest(source))
            path.write_text(text)
            os.utime(path, (1, 1))
    assert len(observed) == 9
    assert digest(source) in observed
    Path(source, "more").touch()
    assert digest(source) not in observed


@pytest.mark.parametrize("name", ["a b", "x" * (LONGEST_LINE // 2)])
def test_a_place_that_no_scripts_first_line_can_name(tmp_path: Path, name: str) -> None:
    programs = tmp_path / name
    programs.mkdir()
    with pytest.raises(InitError, match="too long a path, or one with spaces"):
        install(bundle(tmp_path, "one"), str(programs))
    assert names(programs) == set()


def test_a_bundle_that_is_none(tmp_path: Path, programs: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InitError, match=r"launcher.py.*no such program"):
        install(str(tmp_path / "empty"), str(programs))
    assert names(programs) == {"bridge"}
