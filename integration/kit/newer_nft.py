"""A newer nft than this machine's, from Debian's archive: unpacked, not installed, run with the libraries it needs."""

from __future__ import annotations

import fcntl
import os
import pathlib
import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from integration.kit.namespace import Namespace

SUITE = "trixie"
ARCHIVE = "http://deb.debian.org/debian"
KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"
# A directory in which one was unpacked before.
MADE_BEFORE = "ISTIO_INIT_TEST_NFT"


class NewerNft:
    """The nft below a directory that `unpack` has filled."""

    def __init__(self, directory: pathlib.Path) -> None:
        [linker] = directory.glob("usr/lib/*/ld-linux*.so*")
        self._command = (str(linker), "--library-path", str(linker.parent), str(directory / "usr/sbin/nft"))

    def run(self, namespace: Namespace, *words: str, text: str = "") -> str:
        """What nft prints in a namespace; it must succeed."""
        return namespace.run(*self._command, *words, text=text)

    def version(self) -> tuple[int, ...]:
        """Its version's numbers."""
        said = subprocess.run([*self._command, "--version"], capture_output=True, text=True, check=True).stdout
        return tuple(int(part) for part in said.split()[1].removeprefix("v").split("."))


def unpacked(shared: pathlib.Path) -> NewerNft:
    """The newer nft; of processes that share a directory, the first unpacks it."""
    if made := os.environ.get(MADE_BEFORE):
        return NewerNft(pathlib.Path(made))
    directory = shared / "newer-nft"
    directory.mkdir(exist_ok=True)
    with (directory / "lock").open("w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (directory / "root").exists():
            unpack(directory)
    return NewerNft(directory / "root")


def unpack(directory: pathlib.Path) -> None:
    """The package and those that it needs, downloaded with apt, whose own configuration and lists are left alone."""
    sources = directory / "sources.list"
    sources.write_text(f"deb [signed-by={KEYS}] {ARCHIVE} {SUITE} main\n", encoding="ascii")
    for each in ("lists/partial", "cache/archives/partial", "parts", "packages"):
        (directory / each).mkdir(parents=True, exist_ok=True)
    options = {
        "Dir::State::Lists": directory / "lists",
        "Dir::State::status": "/dev/null",
        "Dir::Etc::SourceList": sources,
        "Dir::Etc::SourceParts": directory / "parts",
        "Dir::Etc::PreferencesParts": directory / "parts",
        "Dir::Cache": directory / "cache",
        "Acquire::Languages": "none",
        "Acquire::Retries": "3",
        "APT::Sandbox::User": "root",
    }
    apt = [word for option, value in options.items() for word in ("-o", f"{option}={value}")]
    _done("apt-get", *apt, "-qq", "update")
    needed = _done("apt-cache", *apt, "depends", "--recurse", "--important", "nftables")
    names = {line for line in needed.splitlines() if line and line[0].isalnum()}
    _done("apt-get", *apt, "-qq", "download", *sorted(names), where=directory / "packages")
    for package in sorted((directory / "packages").glob("*.deb")):
        _done("dpkg-deb", "--extract", str(package), str(directory / "root.new"))
    (directory / "root.new").rename(directory / "root")


def _done(*command: str, where: pathlib.Path | None = None) -> str:
    done = subprocess.run(command, cwd=where, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout
