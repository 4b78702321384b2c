"""Installs, checks and removes the plugin's program in the directory of a node's CNI plugins.

Its source is one of two: a program (a file), or a bundle (a directory, scripts/bundle-cni) with an interpreter of its
own for hosts that have none. A bundle goes to a directory beside the plugin that bears a digest of what is in it, and
the plugin itself is a short script whose first line names that directory's dynamic linker and interpreter; so a new
bundle is whole before the plugin's name means it, and plugins that are running keep theirs.
"""

from __future__ import annotations

import hashlib
import os
import shutil

from istio_init.cni.node.conflist import PLUGIN
from istio_init.errors import InitError
from istio_init.kernel.host import files

LINKER, INTERPRETER, LAUNCHER = "ld.so", "python3", "launcher.py"
LARGEST = 64 << 20  # bytes of a program that is one file
LONGEST_LINE = 255  # bytes of a script's first line that the kernel reads (BINPRM_BUF_SIZE)


def install(source: str, programs: str) -> bool:
    """Install the plugin's program from `source`; returns whether anything was done. InitError where it fails."""
    path = os.path.join(programs, PLUGIN)
    if not os.path.isdir(source):
        return _put(path, _source(source))
    try:
        return _install_bundle(source, programs, path)
    except OSError as error:
        why = f"{error.strerror}; see that both file systems can be used"
        raise InitError(f"{files.named(source)}: can't be installed in {files.named(programs)}: {why}") from error


def _install_bundle(source: str, programs: str, path: str) -> bool:
    name = f"{PLUGIN}.{digest(source)}"
    script = entry(source, os.path.join(programs, name))
    there = os.path.isdir(os.path.join(programs, name))
    before = _bundle_of(path, programs)
    if not there:
        _copy(source, os.path.join(programs, name))
    changed = _put(path, script)
    if changed or not there:
        # Plugins that have just been started still run from the one before.
        _remove_bundles(programs, keep={name, before})
    return changed or not there


def remove(programs: str) -> bool:
    """Remove the program, its bundles and incomplete copies; returns whether there were any."""
    try:
        existed = files.remove(os.path.join(programs, PLUGIN))
        return _remove_bundles(programs, keep=set()) or existed
    except OSError as error:
        raise InitError(
            f"{files.named(programs)}: {PLUGIN} can't be removed: {error.strerror}; is it mounted?"
        ) from error


def entry(source: str, target: str) -> bytes:
    """The script that a runtime starts: the bundle's launcher, run by the bundle's linker and interpreter."""
    line = f"#!{target}/{LINKER} {target}/{INTERPRETER}\n".encode()
    if len(line) > LONGEST_LINE or b" " in os.fsencode(target):
        raise InitError(f"{files.named(target)}: too long a path, or one with spaces, for a script's first line")
    return line + _source(os.path.join(source, LAUNCHER))


def digest(source: str) -> str:
    """A digest of a bundle's files, with their names and modes: 16 hexadecimal digits."""
    sums = hashlib.sha256()
    for path in _tree(source):
        with open(path, "rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        sums.update(f"{os.path.relpath(path, source)}\0{os.stat(path).st_mode:o}\0{content}\0".encode())
    return sums.hexdigest()[:16]


def _tree(source: str) -> list[str]:
    """All files of a bundle, by their paths, in order."""
    return sorted(os.path.join(place, name) for place, _, names in os.walk(source) for name in names)


def _source(path: str) -> bytes:
    content = files.read(path, LARGEST)
    if content is None:
        raise InitError(
            f"{files.named(path)}: there is no such program: name the plugin's file or bundle with --plugin"
        )
    return content.data


def _put(path: str, data: bytes) -> bool:
    before = files.read(path, LARGEST)
    if before is not None and before.data == data and before.mode & 0o777 == 0o755:
        return False
    files.replace(path, data, before.replace(mode=0o755) if before else None, 0o755)
    return True


def _copy(source: str, target: str) -> None:
    """Copy a bundle; its directory bears its name only once everything in it is on the disk."""
    partial = os.path.join(os.path.dirname(target), files.PARTIAL + os.path.basename(target))
    try:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(source, partial)
        os.sync()
        os.rename(partial, target)
        files.sync(os.path.dirname(target))
    except (OSError, shutil.Error) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise InitError(
            f"{files.named(target)}: can't be written: {error}; is the host's directory mounted?"
        ) from error


def _bundle_of(path: str, programs: str) -> str:
    """The name of the bundle of the installed program; empty if it is of none."""
    content = files.read(path, LARGEST)
    line = content.data.partition(b"\n")[0] if content else b""
    directory = os.path.dirname(os.fsdecode(line.removeprefix(b"#!").partition(b" ")[0]))
    return os.path.basename(directory) if os.path.dirname(directory) == programs else ""


def _remove_bundles(programs: str, keep: set[str]) -> bool:
    """Remove all bundles but those to keep, and incomplete copies; returns whether there were any."""
    begins = (f"{PLUGIN}.", f"{files.PARTIAL}{PLUGIN}.")
    gone = [name for name in files.names(programs) if name.startswith(begins) and name not in keep]
    directories = [path for name in gone if os.path.isdir(path := os.path.join(programs, name))]
    for path in directories:
        shutil.rmtree(path)
    return bool(directories)
