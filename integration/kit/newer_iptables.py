"""iptables-nft of a newer release than this machine's, from Debian's archive: unpacked, not installed.

`python -m integration.kit.newer_iptables` writes tests/kernel/newer_iptables.txt anew: the rules of
tests/kernel/newer_iptables.py as the kernel has them after that version's iptables-nft-restore.
"""

from __future__ import annotations

import pathlib
import tempfile
from typing import TYPE_CHECKING

from integration.kit.debian import unpacked_once
from integration.kit.namespace import Namespace
from istio_init.kernel.netlink.channel import attributes
from istio_init.kernel.netlink.nfnetlink import FAMILIES as NUMBERS
from istio_init.kernel.netlink.nfnetlink import HEAD, NfnetlinkChannel
from istio_init.kernel.nft.expressions import EXPRESSIONS
from tests.kernel.newer_iptables import RECORDED, RULES, Recorded

if TYPE_CHECKING:
    from collections.abc import Iterator

    from istio_init.model.rules import Family

SUITE = "trixie"
# A directory in which one was unpacked before.
MADE_BEFORE = "ISTIO_INIT_TEST_IPTABLES"
PREFIX = {"ipv4": "iptables", "ipv6": "ip6tables"}


class NewerIptables:
    """The iptables-nft below a directory into which the package was unpacked."""

    def __init__(self, directory: pathlib.Path) -> None:
        [linker] = directory.glob("usr/lib/*/ld-linux*.so*")
        self._linker, self._libraries = str(linker), linker.parent
        self._program = str(directory / "usr/sbin/xtables-nft-multi")

    def run(self, namespace: Namespace, name: str, *words: str, text: str = "") -> str:
        """What a program of the package (iptables-nft-save, ...) prints in a namespace; it must succeed."""
        start = (self._linker, "--argv0", name, "--library-path", str(self._libraries), self._program)
        extensions = f"XTABLES_LIBDIR={self._libraries / 'xtables'}"
        return namespace.run("env", extensions, *start, *words, text=text)

    def version(self, namespace: Namespace) -> tuple[int, ...]:
        """Its version's numbers."""
        message = self.run(namespace, "iptables-nft", "--version")
        return tuple(int(part) for part in message.split()[1].removeprefix("v").split("."))

    def load(self, namespace: Namespace, family: Family, table: str, rule: str) -> None:
        """One rule alone in a table, with a chain FOO to jump to."""
        text = f"*{table}\n:FOO - [0:0]\n{rule}\nCOMMIT\n"
        self.run(namespace, f"{PREFIX[family]}-nft-restore", text=text)

    def saved(self, namespace: Namespace, family: Family) -> list[str]:
        """The rules that its own iptables-nft-save prints."""
        lines = self.run(namespace, f"{PREFIX[family]}-nft-save").splitlines()
        return [line for line in lines if line.startswith("-A")]


def unpacked(shared: pathlib.Path) -> NewerIptables:
    """The newer iptables-nft; of processes that share a directory, the first unpacks it."""
    return NewerIptables(unpacked_once(SUITE, "iptables", shared, MADE_BEFORE))


def expressions(namespace: Namespace, family: Family, table: str) -> list[bytes]:
    """Of each rule of a table: its expressions, as the kernel has them."""

    def read() -> list[bytes]:
        with NfnetlinkChannel() as channel:
            rules = channel.rules(NUMBERS[family], table)
            return [attributes(data[HEAD.size :])[EXPRESSIONS] for data in rules]

    return namespace.inside(read)


def recorded(newer: NewerIptables) -> Iterator[Recorded]:
    """The rules as this version writes them."""
    for family, tables in RULES.items():
        for table, lines in tables.items():
            for line in lines.splitlines():
                with Namespace() as namespace:
                    newer.load(namespace, family, table, line)
                    [data] = expressions(namespace, family, table)
                    [saved] = newer.saved(namespace, family)
                yield Recorded(family, table, saved, data)


def main() -> None:
    """Write the file."""
    with tempfile.TemporaryDirectory() as directory:
        lines = [each.line() for each in recorded(unpacked(pathlib.Path(directory)))]
    RECORDED.write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
