"""Packages of another release of Debian, from its archive: downloaded and unpacked, not installed."""

from __future__ import annotations

import fcntl
import os
import pathlib
import re
import subprocess

ARCHIVE = "http://deb.debian.org/debian"
KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"
ALL = re.compile(".")


def unpack(suite: str, package: str, directory: pathlib.Path, names: re.Pattern[str] = ALL) -> None:
    """The package and those that it needs, if their `names` match, below a new directory.

    apt's own configuration and lists are left alone. AssertionError with what apt says where it fails.
    """
    work = directory.with_name(f"{directory.name}.apt")
    for each in ("lists/partial", "cache/archives/partial", "parts", "packages"):
        (work / each).mkdir(parents=True, exist_ok=True)
    sources = work / "sources.list"
    sources.write_text(f"deb [signed-by={KEYS}] {ARCHIVE} {suite} main\n", encoding="ascii")
    options = {
        "Dir::State::Lists": work / "lists",
        "Dir::State::status": "/dev/null",
        "Dir::Etc::SourceList": sources,
        "Dir::Etc::SourceParts": work / "parts",
        "Dir::Etc::PreferencesParts": work / "parts",
        "Dir::Cache": work / "cache",
        "Acquire::Languages": "none",
        "Acquire::Check-Valid-Until": "false",  # a release that gets no more updates has no new date
        "Acquire::Retries": "3",
        "APT::Sandbox::User": "root",
    }
    apt = [word for option, value in options.items() for word in ("-o", f"{option}={value}")]
    _done("apt-get", *apt, "-qq", "update")
    needed = _done("apt-cache", *apt, "depends", "--recurse", "--important", package).splitlines()
    match = {line for line in needed if line and line[0].isalnum() and names.match(line)}
    assert match, f"{suite}: {package} needs no package whose name matches {names.pattern}"
    _done("apt-get", *apt, "-qq", "download", *sorted(match), where=work / "packages")
    new = directory.with_name(f"{directory.name}.new")
    for file in sorted((work / "packages").glob("*.deb")):
        _done("dpkg-deb", "--extract", str(file), str(new))
        file.unlink()
    new.rename(directory)


def unpacked_once(
    suite: str, package: str, shared: pathlib.Path, made_before: str, names: re.Pattern[str] = ALL
) -> pathlib.Path:
    """Where the package is unpacked, as unpack() does: below `shared`, by the first of the processes that share it.

    A directory in which that was done before may be named by the variable `made_before`.
    """
    if base := os.environ.get(made_before):
        return pathlib.Path(base)
    directory = shared / f"{suite}-{package}"
    directory.mkdir(exist_ok=True)
    with (directory / "lock").open("w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (directory / "root").exists():
            unpack(suite, package, directory / "root", names)
    return directory / "root"


def _done(*command: str, where: pathlib.Path | None = None) -> str:
    done = subprocess.run(command, cwd=where, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout
