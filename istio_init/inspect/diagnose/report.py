"""A diagnosis as one screen for people, and as JSON for programs."""

from __future__ import annotations

from textwrap import wrap
from typing import TYPE_CHECKING, Any

from istio_init.simulate.purposes import purposes
from istio_init.simulate.report import TextLine, because, verdict
from istio_init.simulate.report_json import as_json
from istio_init.simulate.wording import packet_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from istio_init.inspect.diagnose.case import Cause, Situation
    from istio_init.simulate.path import PacketPath
    from istio_init.simulate.report import Style

WIDTH, HEIGHT = 80, 24
HEALTHY = "HEALTHY: calls pass through the sidecar"
# How much of each part fits on a screen.
MOST_EVIDENCE, MOST_REMEDIES, MOST_REMARKS, MOST_LINES = 3, 2, 4, 2


def lines(
    about: Situation,
    faults: tuple[Cause, ...],
    call: PacketPath | None,
    unknown: str = "",
    remarks: tuple[str, ...] = (),
) -> Iterator[TextLine]:
    """The screen: the verdict, the cause with its packet, the evidence, what to do, and where the options are from."""
    if not faults:
        yield from _text("fate", "", _well(about, call, unknown))
        if call:
            yield from _packet(call, about)
    else:
        cause = faults[0]
        yield from _text("trouble", "FAULT: ", cause.verdict)
        yield from _text("title", "Cause: ", cause.cause)
        if path := call or cause.path:
            yield from _packet(path, about)
        yield TextLine("hook", 0, "Evidence:")
        for text in cause.evidence[:MOST_EVIDENCE]:
            yield from _text("purpose", "  - ", text)
        yield TextLine("hook", 0, "Do:")
        for text in cause.remedy[:MOST_REMEDIES]:
            yield from _text("hit", "  - ", text)
        if faults[1:]:
            yield from _text("miss", "Also: ", "; ".join(each.cause for each in faults[1:]), most=4)
    for text in remarks[: 1 if faults else MOST_REMARKS]:
        yield from _text("purpose", "Note: ", text)
    yield from _text("miss", "Options: ", about.source, most=3)


def _well(about: Situation, call: PacketPath | None, unknown: str) -> str:
    if call:
        return f"{HEALTHY.partition(':')[0]}: the call is captured, as the options want"
    if unknown:
        return f"{HEALTHY}, as far as {unknown} tells"
    listeners = "" if about.listening is None else "; the sidecar listens"
    return f"{HEALTHY}; {'captured by eBPF' if about.capture else 'the rules are in place'}{listeners}"


def _packet(path: PacketPath, about: Situation) -> Iterator[TextLine]:
    first = path.legs[0]
    yield from _text("routing", "Packet: ", packet_text(first.packet))
    reason = because(first, purposes(about.options, first.packet.family))
    yield from _text("routing", "  => ", f"{verdict(path)}, {reason}")


def _text(style: Style, label: str, text: str, most: int = MOST_LINES) -> Iterator[TextLine]:
    """A paragraph in the width of a screen, at most so many lines of it."""
    # A command or an option that is broken at a hyphen can't be copied.
    text_lines = wrap(
        text, WIDTH, initial_indent=label, subsequent_indent=" " * len(label), break_on_hyphens=False
    ) or [label]
    if len(text_lines) > most:
        text_lines = [*text_lines[: most - 1], f"{text_lines[most - 1][: WIDTH - 4]} ..."]
    yield from (TextLine(style, 0, line) for line in text_lines)


def document(about: Situation, faults: tuple[Cause, ...], call: PacketPath | None, code: int) -> dict[str, Any]:
    """Everything, for programs."""
    return {
        "code": code,
        "healthy": not faults,
        "options": about.source,
        "backends": list(about.backends),
        "causes": [
            {
                "name": each.name,
                "verdict": each.verdict,
                "cause": each.cause,
                "evidence": list(each.evidence),
                "remedy": list(each.remedy),
                "packet": _path(each.path, about),
            }
            for each in faults
        ],
        "call": _path(call, about),
        "unknown": None,
    }


def _path(path: PacketPath | None, about: Situation) -> dict[str, Any] | None:
    if path is None:
        return None
    return as_json(path, purposes(about.options, path.legs[0].packet.family))
