"""The Firewall on native nftables, through libnftables: all tables and both families in one transaction.

What is written is JSON (nft_json.py); no nft binary is run. The tables istio-proxy-raw, -mangle and -nat of the
family inet are ours alone: writing one replaces all that stands in it.
"""

from __future__ import annotations

from _ctypes import _SimpleCData

from istio_init.errors import KernelError
from istio_init.formats.nft import json_reader, json_writer, layout, merge
from istio_init.kernel.host import libc
from istio_init.kernel.host.libc import Pointer, function
from istio_init.kernel.netlink.nfnetlink import NFPROTO_INET, NfnetlinkChannel
from istio_init.model import inet
from istio_init.model.rules import FAMILIES, Ruleset, Table

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, Self

    from istio_init.model.compare import TableChange
    from istio_init.model.rules import Family, Rule, Run, TableName

SONAME = "libnftables.so.1"
NFT_CTX_OUTPUT_JSON = 1 << 4  # <nftables/libnftables.h>


class String(_SimpleCData):  # type: ignore[type-arg]
    """A const char *, as bytes or None."""

    _type_ = "z"


class Nftables:
    """The tables istio-proxy-* of the calling thread's network namespace; see kernel.Firewall."""

    def __init__(self) -> None:
        # What stood at a generation of the rules, which changes whenever anyone writes.
        self._seen: tuple[int, tuple[inet.InetTable, ...]] | None = None
        # What chains' rules become, with the rules that it was made from.
        self._folded: dict[tuple[int, Family], tuple[Sequence[Rule | Run], merge.Folded]] = {}

    def read(self, family: Family, expecting: Ruleset | None = None) -> Ruleset:
        """See kernel.Firewall. A set that is just what rules of `expecting` become reads as those rules."""
        return layout.ruleset(self._tables(), family, expecting, self._fold)

    def standing(self) -> tuple[inet.InetTable, ...]:
        """What stands of our tables, as inet tables."""
        return self._tables()

    def replace(self, family: Family, wanted: Table) -> None:
        """See kernel.Firewall."""
        self._write(((family, wanted.name, wanted),))

    def remove(self, family: Family, name: TableName, wanted: Table | None = None) -> None:  # noqa: ARG002 (as it says)
        """See kernel.Firewall. All that stands in these tables is ours, whatever `wanted` says."""
        self._write(((family, name, None),))

    def write(self, changes: tuple[TableChange, ...]) -> None:
        """See kernel.Transactional."""
        self._write([(change.family, change.name, change.wanted) for change in changes])

    def _write(self, changes: Sequence[tuple[Family, TableName, Table | None]]) -> None:
        """All changes in one transaction; each table that they are about is replaced whole."""
        standing = self._tables()
        names = tuple(dict.fromkeys(name for _, name, _ in changes))
        rulesets = tuple(_changed(layout.ruleset(standing, family), changes) for family in FAMILIES)
        laid_out = tuple(layout.layout(rulesets, name, self._fold) for name in names)
        wanted = tuple(table for table in laid_out if table.chains)
        if wanted or any(table.name in names for table in standing):
            what = f"write the tables {', '.join(inet.NAMES[name] for name in names)}"
            with Library() as library:
                library.run(json_writer.replacement(names, wanted), what, wanted)

    def _tables(self) -> tuple[inet.InetTable, ...]:
        """What stands of our tables."""
        with NfnetlinkChannel() as channel:
            generation = channel.generation()
            if self._seen is None or self._seen[0] != generation:
                names = {name for family, name in channel.tables() if family == NFPROTO_INET}
                self._seen = generation, _listed(tuple(name for name, theirs in inet.NAMES.items() if theirs in names))
        return self._seen[1]

    def _fold(self, parts: Sequence[Rule | Run], family: Family) -> merge.Folded:
        key = id(parts), family
        if key not in self._folded:
            self._folded[key] = parts, merge.fold(parts, family)
        return self._folded[key][1]


def _changed(found: Ruleset, changes: Sequence[tuple[Family, TableName, Table | None]]) -> Ruleset:
    """One family's ruleset after the changes."""
    tables = {table.name: table for table in found.tables}
    for family, name, wanted in changes:
        if family == found.family:
            tables.pop(name, None)
            if wanted is not None:
                tables[name] = wanted
    return found.replace(tables=tuple(tables.values()))


def _listed(names: tuple[TableName, ...]) -> tuple[inet.InetTable, ...]:
    if not names:
        return ()
    with Library() as library:
        # One command each: of several tables listed in one go, libnftables 1.0.6 finds but the last.
        return tuple(
            json_reader.table(name, library.run(json_writer.list_table(name), f"read the table {inet.NAMES[name]}"))
            for name in names
        )


class Library:
    """libnftables with a context of its own, whose socket is the calling thread's network namespace's."""

    def __enter__(self) -> Self:
        """KernelError where the library is not installed."""
        try:
            library = libc.library(SONAME)
        except OSError as error:
            raise KernelError(
                f"{SONAME} can't be opened ({error}): install it (Debian and Ubuntu: libnftables1; Fedora: "
                f"nftables; Alpine: nftables), or leave --native-nftables out"
            ) from error
        names = ("ctx_free", "ctx_output_set_flags", "ctx_buffer_output", "ctx_buffer_error", "run_cmd_from_buffer")
        self._functions: dict[str, Any] = {name: function(library, f"nft_{name}") for name in names}
        for name in ("ctx_get_output_buffer", "ctx_get_error_buffer"):
            self._functions[name] = function(library, f"nft_{name}", String)
        self._context = Pointer(function(library, "nft_ctx_new", Pointer)(0))
        self._call("ctx_output_set_flags", NFT_CTX_OUTPUT_JSON)
        self._call("ctx_buffer_output")
        self._call("ctx_buffer_error")
        return self

    def __exit__(self, *_: object) -> None:
        self._call("ctx_free")

    def _call(self, function: str, *arguments: object) -> Any:  # noqa: ANN401 (each function has its own)
        return self._functions[function](self._context, *arguments)

    def run(self, commands: str, what: str, tables: tuple[inet.InetTable, ...] = ()) -> str:
        """What the library prints for JSON commands. KernelError where they are refused.

        It says `what`, and of `tables`, which are to be written, what the kernel may lack for them.
        """
        if self._call("run_cmd_from_buffer", commands.encode()):
            from istio_init.kernel.nft.native_refusal import explain

            raise explain(what, self._call("ctx_get_error_buffer").decode(errors="replace"), tables)
        printed: bytes = self._call("ctx_get_output_buffer")
        return printed.decode(errors="replace")
