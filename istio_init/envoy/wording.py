"""Answers as text and as JSON. Text from a dump is escaped and cut."""

from __future__ import annotations

from istio_init.envoy.node import plain
from istio_init.envoy.passage import Passage
from istio_init.formats.addresses import address_text, endpoint_text
from istio_init.simulate.path import Leg
from istio_init.simulate.report import TROUBLE, TextLine, fate, leg_lines
from istio_init.simulate.report_json import leg_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

    from istio_init.envoy.passage import Dial, Step
    from istio_init.envoy.path import Answer, Path
    from istio_init.simulate.purposes import Purpose, RuleLocation
    from istio_init.simulate.report import Style

# The text shows at most this many alternatives of a decision; JSON has them all.
MOST_OTHERS = 4
# Response flags of Envoy's access log (envoy/stream_info/stream_info.h), in words.
FLAGS = {
    "NR": "no route or filter chain",
    "UH": "no healthy upstream",
    "UF": "upstream connection failure",
    "NC": "no cluster",
    "DPE": "downstream protocol error",
}


def lines(
    answers: tuple[Answer, ...], reasons: Mapping[RuleLocation, Purpose], *, steps: bool = False
) -> Iterator[TextLine]:
    """All answers, with their verdicts first and last; repeated stages are printed once."""
    yield from verdict_lines(answers, reasons)
    printed_stages: list[Leg | Passage] = []
    explained: set[RuleLocation] = set()
    for answer in answers:
        yield TextLine("hook", 0, "")
        if len(answers) > 1:
            yield TextLine("title", 0, f"A client that speaks {spoken(answer)}:")
        for path in answer.paths:
            yield from path_lines(path, reasons, printed_stages, explained, steps=steps)
    yield TextLine("hook", 0, "")
    yield from verdict_lines(answers, reasons)


def verdict_lines(answers: tuple[Answer, ...], reasons: Mapping[RuleLocation, Purpose]) -> Iterator[TextLine]:
    """Where each answer ends."""
    for answer in answers:
        for path in answer.paths:
            unless = f"; undecided: {path.conditions[0]}" if path.conditions else ""
            style: Style = "fate" if is_good(path) else "trouble"
            yield TextLine(style, 0, f"Verdict: {spoken(answer)}: {path_text(path, reasons)}{unless}.")


def is_good(path: Path) -> bool:
    """Whether a connection arrives, and nothing may change that."""
    last = path.stages[-1]
    if path.loop or path.conditions:
        return False
    return last.end not in TROUBLE if isinstance(last, Leg) else _answers_well(last)


def _answers_well(passage: Passage) -> bool:
    return passage.end.kind == "dials" or (passage.end.kind == "answers" and passage.end.status < 400)


def spoken(answer: Answer) -> str:
    """The clients that an answer is for."""
    names = [client.speaks for client in answer.clients]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"


def path_lines(
    path: Path,
    reasons: Mapping[RuleLocation, Purpose],
    printed_stages: list[Leg | Passage],
    explained: set[RuleLocation],
    *,
    steps: bool = False,
) -> Iterator[TextLine]:
    """One path as lines; `printed_stages` and `explained` are the stages and purposes that are already printed."""
    for number, stage in enumerate(path.stages, 1):
        if isinstance(stage, Leg) and stage in printed_stages:
            yield TextLine("hook", 0, "")
            yield TextLine("routing", 0, f"{number}. As above: {fate(stage, reasons)}.")
            continue
        printed_stages.append(stage)
        if isinstance(stage, Leg):
            yield from leg_lines(number, stage, reasons, explained, steps=steps)
        else:
            yield TextLine("hook", 0, "")
            yield from passage_lines(number, stage)
    if path.loop:
        yield TextLine("trouble", 0, f"LOOP: the connection reaches {plain(path.loop)} again; it never ends.")
    for why in path.conditions:
        yield TextLine("trouble", 0, f"UNDECIDED: {why}.")


def proxy_lines(answers: tuple[Answer, ...], reasons: Mapping[RuleLocation, Purpose]) -> Iterator[TextLine]:
    """All answers, with Envoy's part in full and one line for the rules' part."""
    for answer in answers:
        yield TextLine("title", 0, f"A client that speaks {spoken(answer)}")
        for path in answer.paths:
            for number, stage in enumerate(path.stages, 1):
                if isinstance(stage, Leg):
                    yield TextLine("routing", 0, f"{number}. From {stage.sender}: {fate(stage, reasons)}.")
                else:
                    yield from passage_lines(number, stage)
    yield from verdict_lines(answers, reasons)


def passage_lines(number: int, passage: Passage) -> Iterator[TextLine]:
    """A path through Envoy as lines."""
    yield TextLine("title", 0, f"{number}. Envoy{f', {plain(passage.listener)}' if passage.listener else ''}")
    for step in passage.steps:
        yield from _step_lines(step)
    yield TextLine("fate" if _answers_well(passage) else "trouble", 1, f"=> {end_text(passage)}.")


def _step_lines(step: Step) -> Iterator[TextLine]:
    where = f"   [{step.path}]" if step.path else ""
    yield TextLine("hit", 1, f"+ {step.part}: {step.text}{where}")
    for other in step.others[:MOST_OTHERS]:
        yield TextLine("miss", 3, f"- {other.name}   ({other.why})")
    if len(step.others) > MOST_OTHERS:
        more = len(step.others) - MOST_OTHERS
        yield TextLine("miss", 3, f"  ... and {more} more (--output json has them all)")


def end_text(passage: Passage) -> str:
    """The end of a path through Envoy, with Envoy's response flag."""
    end = passage.end
    if end.kind == "dials":
        return f"Envoy dials {end.text}"
    if end.kind == "undecided":
        return f"undecided: {end.text}"
    flag = f" [response flag {end.flag}: {FLAGS[end.flag]}]" if end.flag else ""
    return f"{end.text}{flag}"


def path_text(path: Path, reasons: Mapping[RuleLocation, Purpose]) -> str:
    """Where a path ends, in one sentence."""
    last, names = path.stages[-1], [plain(passage.cluster) for passage in path.passages if passage.cluster]
    if path.loop:
        return f"a loop: the connection reaches {plain(path.loop)} again"
    if not isinstance(last, Leg):
        return end_text(last)
    if not names or last.end not in {"application", "wire"}:
        return fate(last, reasons)
    packet = last.arrived
    to = endpoint_text(packet.destination, packet.destination_port)
    where = f"the app at {to}, from" if last.end == "application" else f"{to} by {packet.out_interface}, from"
    return f"reaches {where} {address_text(packet.source)}, by cluster {', then '.join(names)}"


def as_json(answers: tuple[Answer, ...], reasons: Mapping[RuleLocation, Purpose]) -> dict[str, Any]:
    """All answers as plain dicts, lists, strings and numbers."""
    return {
        "answers": [
            {
                "clients": [client.speaks for client in answer.clients],
                "paths": [path_json(path, reasons) for path in answer.paths],
            }
            for answer in answers
        ]
    }


def path_json(path: Path, reasons: Mapping[RuleLocation, Purpose]) -> dict[str, Any]:
    """One path as a plain dict."""
    last = path.stages[-1]
    end = last.end if isinstance(last, Passage) else None
    return {
        "stages": [
            {"kernel": leg_json(stage, reasons)} if isinstance(stage, Leg) else {"envoy": passage_json(stage)}
            for stage in path.stages
        ],
        "end": path.end,
        "flag": path.flag or None,
        "status": (end.status or None) if end else None,
        "loop": path.loop or None,
        "undecided": list(path.conditions) + ([end.text] if end and end.kind == "undecided" else []),
        "fate": path_text(path, reasons),
    }


def passage_json(passage: Passage) -> dict[str, Any]:
    """A path through Envoy as a plain dict."""
    end = passage.end
    return {
        "listener": passage.listener or None,
        "filter_chain": passage.chain or None,
        "route": passage.route or None,
        "cluster": passage.cluster or None,
        "steps": [_step_json(step) for step in passage.steps],
        "end": {"kind": end.kind, "flag": end.flag or None, "status": end.status or None, "text": end_text(passage)},
        "dials": [_dial_json(dial) for dial in passage.dials],
        "undecided": list(passage.conditions),
    }


def _step_json(step: Step) -> dict[str, Any]:
    others = [{"name": each.name, "why": each.why, "path": each.path or None} for each in step.others]
    return {"part": step.part, "text": step.text, "path": step.path or None, "others": others}


def _dial_json(dial: Dial) -> dict[str, Any]:
    return {
        "to": endpoint_text(dial.address, dial.port),
        "from": address_text(dial.source) if dial.source else None,
        "mark": dial.mark,
        "speaks": dial.client.speaks,
    }
