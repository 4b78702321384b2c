"""A newer nft than this machine's, from Debian's archive: unpacked, not installed, run with the libraries it needs."""

from __future__ import annotations

import pathlib
import subprocess
from typing import TYPE_CHECKING

from integration.kit.debian import unpacked_once

if TYPE_CHECKING:
    from integration.kit.namespace import Namespace

# Debian 13 has its own nft 1.1.3 as this machine's when the tests run there.
SUITE = "forky"
# A directory in which one was unpacked before.
MADE_BEFORE = "ISTIO_INIT_TEST_NFT"


class NewerNft:
    """The nft below a directory into which the package was unpacked."""

    def __init__(self, directory: pathlib.Path) -> None:
        [linker] = directory.glob("usr/lib/*/ld-linux*.so*")
        self._command = (str(linker), "--library-path", str(linker.parent), str(directory / "usr/sbin/nft"))

    def run(self, namespace: Namespace, *words: str, text: str = "") -> str:
        """What nft prints in a namespace; it must succeed."""
        return namespace.run(*self._command, *words, text=text)

    def version(self) -> tuple[int, ...]:
        """Its version's numbers."""
        output = subprocess.run([*self._command, "--version"], capture_output=True, text=True, check=True).stdout
        return tuple(int(part) for part in output.split()[1].removeprefix("v").split("."))


def unpacked(shared: pathlib.Path) -> NewerNft:
    """The newer nft; of processes that share a directory, the first unpacks it."""
    return NewerNft(unpacked_once(SUITE, "nftables", shared, MADE_BEFORE))
