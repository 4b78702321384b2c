"""Others who write to the legacy tables at the same time: nobody loses anything."""

from __future__ import annotations

import errno
import multiprocessing
import random
import socket
import time
from typing import TYPE_CHECKING

import pytest

from integration.kit.legacy_tables import RETURN, marked, nat, saved, table_of
from integration.kit.namespace import Namespace
from integration.kit.program import IPTABLES, SAVE
from istio_init.errors import KernelError
from istio_init.kernel.xtables.encode_rule import pack
from istio_init.kernel.xtables.firewall import Libiptc
from istio_init.kernel.xtables.libiptc import Handle, functions
from istio_init.kernel.xtables.sockopt import StepError
from istio_init.model.extensions import (
    Mark,
)
from istio_init.model.rules import (
    FAMILIES,
    IPV4,
    Chain,
    Jump,
    Rule,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from istio_init.model.rules import Family, TableName


def preceded(function: Callable[..., object], first: Callable[[], object]) -> Callable[..., object]:
    """The function, before whose first call something else happens."""
    waiting = [first]

    def call(*arguments: object) -> object:
        while waiting:
            waiting.pop()()
        return function(*arguments)

    return call


@pytest.mark.parametrize("moment", ["__init__", "append", "commit"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_rule_that_somebody_adds_meanwhile_is_kept(
    namespace: Namespace, family: Family, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = ["-d", "192.0.2.9/32" if family == IPV4 else "2001:db8::9/128", "-j", "RETURN"]
    add = [IPTABLES[family], "-t", "nat", "-A", "OUTPUT", *theirs]
    monkeypatch.setattr(Handle, moment, preceded(getattr(Handle, moment), lambda: namespace.run(*add)))
    namespace.inside(lambda: Libiptc().replace(family, nat(*marked(1))))
    rules = [line for line in saved(namespace, family, "nat").split("\n") if line.startswith("-A OUTPUT")]
    assert rules == [f"-A OUTPUT {' '.join(theirs)}", "-A OUTPUT -j ISTIO_OUTPUT"]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_rule_that_somebody_changes_meanwhile_is_kept(
    namespace: Namespace, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel would not notice: the number of entries stays as it was."""
    namespace.run(IPTABLES[family], "-t", "nat", "-A", "OUTPUT", "-m", "mark", "--mark", "1", "-j", "RETURN")
    change = [IPTABLES[family], "-t", "nat", "-R", "OUTPUT", "1", "-m", "mark", "--mark", "2", "-j", "ACCEPT"]
    monkeypatch.setattr(Handle, "append", preceded(Handle.append, lambda: namespace.run(*change)))
    namespace.inside(lambda: Libiptc().replace(family, nat(*marked(1))))
    rules = [line for line in saved(namespace, family, "nat").split("\n") if line.startswith("-A OUTPUT")]
    assert rules == ["-A OUTPUT -m mark --mark 0x2 -j ACCEPT", "-A OUTPUT -j ISTIO_OUTPUT"]


def test_chains_that_somebody_takes_away_meanwhile_are_made_anew(
    namespace: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What libiptc does not find it can't empty: that is nobody's error."""
    namespace.inside(lambda: Libiptc().replace(IPV4, nat(*marked(1))))

    def take_away() -> None:
        for flag in ("-F", "-X"):
            namespace.run(IPTABLES[IPV4], "-t", "nat", flag)

    monkeypatch.setattr(Handle, "__init__", preceded(Handle.__init__, take_away))
    namespace.inside(lambda: Libiptc().replace(IPV4, nat(*marked(2))))
    table = namespace.inside(lambda: Libiptc().read(IPV4)).table("nat")
    own = table and table.chain("ISTIO_OUTPUT")
    assert own
    assert own.rules == marked(2)


def test_packets_that_are_counted_meanwhile_are_no_change(
    namespace: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    namespace.run(IPTABLES[IPV4], "-t", "mangle", "-A", "OUTPUT", "-p", "udp", "-j", "RETURN")
    jump = Rule((), Jump("ISTIO_OUTPUT"))
    desired = table_of("mangle", Chain("OUTPUT", (jump,), "ACCEPT"), Chain("ISTIO_OUTPUT", marked(1)))
    opened = []

    def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
            datagrams.sendto(b"x", ("127.0.0.1", 9))

    class Counted(Handle):
        def __init__(self, functions: dict[str, Any], name: TableName) -> None:
            opened.append(name)
            super().__init__(functions, name)

    monkeypatch.setattr("istio_init.kernel.xtables.libiptc.Handle", Counted)
    monkeypatch.setattr(Handle, "append", preceded(Handle.append, send))
    namespace.inside(lambda: Libiptc().replace(IPV4, desired))
    assert opened == ["mangle"]
    (theirs,) = [line for line in namespace.run(SAVE[IPV4], "-c", "-t", "mangle").split("\n") if "-p udp" in line]
    assert theirs.startswith("[1:")


def test_somebody_who_never_stops_is_an_error(namespace: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    namespace.inside(lambda: Libiptc().replace(IPV4, nat(*marked(1))))
    append = Handle.append

    def disturbed(handle: Handle, chain: str, entries: list[bytes]) -> None:
        with Handle(functions(IPV4), "nat") as other:
            append(other, "OUTPUT", [pack(Rule((), RETURN), IPV4)])
            other.commit()
        append(handle, chain, entries)

    monkeypatch.setattr(Handle, "append", disturbed)
    with pytest.raises(KernelError, match="ipv4 nat: another program wrote to the table 100 times"):
        namespace.inside(lambda: Libiptc().replace(IPV4, nat(*marked(2))))
    table = namespace.inside(lambda: Libiptc().read(IPV4)).table("nat")
    assert table
    own = table.chain("ISTIO_OUTPUT")
    assert own
    assert own.rules == marked(1)


def append(family: Family, number: int) -> None:
    """What somebody does who takes no lock, but tries again where the kernel says that he must."""
    entry = pack(Rule((Mark(number),), RETURN), family).replace(b"ISTI", bytes(4))
    while True:
        with Handle(functions(family), "nat") as handle:
            handle.append("POSTROUTING", [entry])
            try:
                handle.commit()
            except StepError as error:
                if error.errno == errno.EAGAIN:
                    continue
                # Written; but libiptc had counters to set, and another program wrote in between.
                assert error.errno == errno.EINVAL  # noqa: PT017 (any other is the test's failure)
        return


@pytest.mark.parametrize("family", FAMILIES)
def test_two_who_take_no_lock_lose_nothing(namespace: Namespace, family: Family) -> None:
    """Somebody appends rules while ours are written again and again, more and fewer."""
    namespace.inside(lambda: Libiptc().replace(family, nat()))
    stopped = multiprocessing.Event()
    appended = multiprocessing.Value("i", 0)
    begun = multiprocessing.Value("d", time.monotonic())

    def append_until_stopped() -> None:
        namespace.enter()
        while not stopped.is_set():
            append(family, appended.value)
            appended.value += 1
            # On a busy machine, too, the other is to be done first at times: the longer it takes, the longer the pause.
            began = begun.value
            time.sleep((time.monotonic() - began) * random.uniform(0, 3))

    def write() -> None:
        firewall = Libiptc()
        rounds = 0
        while appended.value < 60 and other.is_alive():
            rounds += 1
            begun.value = time.monotonic()
            firewall.replace(family, nat(*marked(*range(rounds % 7))))

    other = multiprocessing.get_context("fork").Process(target=append_until_stopped)
    other.start()
    try:
        namespace.inside(write)
    finally:
        stopped.set()
        other.join()
    namespace.inside(lambda: Libiptc().replace(family, nat(*marked(1, 2, 3))))
    assert other.exitcode == 0
    table = namespace.inside(lambda: Libiptc().read(family)).table("nat")
    assert table
    theirs, ours = table.chain("POSTROUTING"), table.chain("ISTIO_OUTPUT")
    assert theirs
    assert ours
    assert theirs.rules == marked(*range(appended.value))
    assert ours.rules == marked(1, 2, 3)
