"""The live page of `show --watch`, on a real terminal, of a real namespace."""

from __future__ import annotations

import re
import shlex
import socket
import time
from collections.abc import Callable

import pexpect
import pytest

from integration.kit.namespace import Namespace
from integration.kit.pod import applied, options_of
from integration.kit.program import VERBS
from integration.kit.terminal import PATIENCE, at_a_terminal, ended
from istio_init.cli.verbs.watch_page import HINT

ALL = "-u 1337 -i '*' -b '*' -d 15090 --no-enable-ipv6"
VERB = [*VERBS, "show", *shlex.split(ALL), "--watch", "0.2"]
# Each frame begins where the screen does.
FRAME = "\x1b[H"
ESCAPES = re.compile(r"\x1b(\[[0-9;?]*[A-Za-z]|\][^\x07]*\x07|.)")
UP, DOWN = "\x1b[A", "\x1b[B"


class Screen:
    """What a terminal shows: the last whole frame of what was written to it."""

    def __init__(self, child: pexpect.spawn[str]) -> None:
        self.child, self._written = child, ""

    def lines(self) -> list[str]:
        """The lines of the last whole frame."""
        try:
            while True:
                self._written += self.child.read_nonblocking(1 << 16, 0.05)
        except pexpect.TIMEOUT:
            pass
        frames = self._written.split(FRAME)
        # The last one may still be on its way; the page is drawn again and again.
        whole = frames[1:-1]
        return [ESCAPES.sub("", line).rstrip() for line in whole[-1].rstrip().splitlines()] if whole else []

    def awaited(self, shows: Callable[[list[str]], bool]) -> list[str]:
        """The lines, as soon as they are as they should be."""
        last = time.monotonic() + PATIENCE
        while time.monotonic() < last:
            if shows(lines := self.lines()):
                return lines
        raise AssertionError("\n".join(lines))


def rows(lines: list[str], chain: str) -> list[str]:
    """The rows of a chain's rules; the explanation is behind a line."""
    end = next((at for at, line in enumerate(lines) if line.startswith("───")), len(lines))
    return [line for line in lines[:end] if re.match(rf"(ipv4 nat )?{chain} ", line)]


def explanation(lines: list[str]) -> str:
    """What is said of the selected rule."""
    at = next(at for at, line in enumerate(lines) if line.startswith("───"))
    return " ".join(lines[at + 1 : -1])


def some_datagrams() -> None:
    """New connections to nat's counters: each from a port of its own."""
    for _ in range(20):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"x", ("127.0.0.1", 9))


@pytest.mark.parametrize("columns", [40, 80, 160])
def test_the_page_and_its_keys(namespace: Namespace, columns: int) -> None:
    namespace.inside(lambda: applied(options_of(ALL)))
    with at_a_terminal(namespace, *VERB, columns=columns) as child:
        screen = Screen(child)
        lines = screen.awaited(lambda lines: bool(rows(lines, "ISTIO_OUTPUT")))
        assert lines[0].startswith("in place (")
        assert max(map(len, lines)) <= columns
        assert ("bytes/s" in "".join(lines)) == (columns >= 60)
        # Down and up, and what the selected rule is for.
        first = explanation(lines)
        child.send(DOWN + DOWN)
        screen.awaited(lambda lines: explanation(lines) != first)
        child.send(UP + "k")
        screen.awaited(lambda lines: explanation(lines) == first)
        # A filter leaves the rules that have all its words, also of their purpose; escape takes it away.
        child.send("/15090 excluded inbound\r")
        lines = screen.awaited(lambda lines: len(rows(lines, "ISTIO_INBOUND")) == 1 and not rows(lines, "ISTIO_OUTPUT"))
        assert lines[-1].startswith("filter: 15090 excluded inbound")
        assert "--dport 15090 -j RETURN" in explanation(lines)
        assert "set by traffic.sidecar.istio.io/exclu" in explanation(lines)
        child.send("\x1b")
        screen.awaited(lambda lines: "filter:" not in lines[-1])
        child.send("?")
        screen.awaited(lambda lines: "select a rule" in explanation(lines))
        child.send("?")
        screen.awaited(lambda lines: "select a rule" not in explanation(lines))
        child.send("q")
        code, rest = ended(child)
    assert code == 0
    assert "\x1b[?1049l" in rest


def test_counters_per_second_and_a_pause(namespace: Namespace) -> None:
    namespace.inside(lambda: applied(options_of(ALL)))
    with at_a_terminal(namespace, *VERB, columns=120) as child:
        screen = Screen(child)

        def rate(lines: list[str]) -> float:
            result = rows(lines, "OUTPUT")
            return float(result[0].split()[-3]) if result and result[0].split()[-3] != "-" else -1.0

        screen.awaited(lambda lines: rate(lines) == 0)
        namespace.inside(some_datagrams)
        screen.awaited(lambda lines: rate(lines) > 0)
        screen.awaited(lambda lines: rate(lines) == 0)
        child.send(" ")
        before = screen.awaited(lambda lines: "PAUSED" in lines[-1])
        namespace.inside(some_datagrams)
        child.send("s")
        sorted_ = screen.awaited(lambda lines: "by packets/s" in lines[-1])
        assert rows(sorted_, "OUTPUT")[0].split()[-1] == rows(before, "OUTPUT")[0].split()[-1]
        child.send(" ")
        after = screen.awaited(lambda lines: rate(lines) > 0)
        # The busiest rule is the first.
        assert after[after.index(rows(after, "OUTPUT")[0]) - 1].startswith("chain ")
        child.sendintr()
        code, _ = ended(child)
    assert code == 0


def test_a_rule_that_goes_is_said(namespace: Namespace) -> None:
    namespace.inside(lambda: applied(options_of(ALL)))
    with at_a_terminal(namespace, *VERB, columns=100) as child:
        screen = Screen(child)
        screen.awaited(lambda lines: lines[:1] != [] and lines[0].startswith("in place"))
        namespace.run("iptables-legacy", "-w", "-t", "nat", "-D", "ISTIO_INBOUND", "2")
        lines = screen.awaited(lambda lines: lines[0].startswith("drifted"))
        assert "missing: -p tcp -m tcp --dport 15090" in lines[1]
        child.send("q")
        code, _ = ended(child)
    assert code == 0


def test_a_namespace_that_goes_is_one_line(namespace: Namespace) -> None:
    with Namespace() as other:
        verb = [*VERBS, "show", "--netns", other.path, "--watch", "0.2"]
        with at_a_terminal(namespace, *verb) as child:
            child.expect_exact(HINT.split("  ")[0])
            other.__exit__(None, None, None)
            code, rest = ended(child)
        other.__enter__()
    shown = ESCAPES.sub("", rest.partition("\x1b[?1049l")[2]).strip()
    assert code == 1
    assert shown.startswith("istio-init: ")
    assert "\n" not in shown
