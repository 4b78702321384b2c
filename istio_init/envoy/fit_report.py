"""The report on whether rules and proxy fit, as text and as JSON."""

from __future__ import annotations

from istio_init.envoy.wording import path_json, path_lines, path_text
from istio_init.simulate.report import TextLine

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Any, TypeAlias

    from istio_init.envoy.fit import Fit, Misfit
    from istio_init.model.rules import Family
    from istio_init.simulate.purposes import Purpose, RuleLocation

    Purposes: TypeAlias = Callable[[Family], Mapping[RuleLocation, Purpose]]


def lines(fit: Fit, reasons: Purposes) -> Iterator[TextLine]:
    """The claims, what breaks them, and the notes; `reasons` are the purposes of a family's rules."""
    broken = {misfit.claim for misfit in fit.misfits}
    for claim in fit.claims:
        state = "BROKEN" if claim in broken else "holds "
        yield TextLine("trouble" if claim in broken else "hit", 0, f"{state} {claim.name} {claim.text}")
    for misfit in fit.misfits:
        yield TextLine("hook", 0, "")
        yield TextLine("trouble", 0, f"Broken: {misfit.claim.name} {misfit.claim.text}")
        where = f"   [{misfit.where}]" if misfit.where else ""
        yield TextLine("purpose", 1, f"{misfit.family}: {misfit.actual}{where}")
        if misfit.path and misfit.client:
            yield TextLine("purpose", 1, f"a client that speaks {misfit.client.speaks}:")
            path = path_lines(misfit.path, reasons(misfit.family), [], set())
            yield from (line.replace(depth=line.depth + 1) for line in path)
    if fit.notes:
        yield TextLine("hook", 0, "")
        yield TextLine("title", 0, "Worth knowing (breaks no claim):")
        for note in fit.notes:
            yield TextLine("miss", 1, f"{note.name} {note.text}" + (f"   [{note.where}]" if note.where else ""))
    yield TextLine("hook", 0, "")
    counts = f"{len(fit.claims)} claims about rules and proxy, {fit.connections} connections followed."
    if broken:
        yield TextLine("trouble", 0, f"Rules and proxy do NOT fit: {len(broken)} of {counts}")
    else:
        yield TextLine("fate", 0, f"Rules and proxy fit: {counts}")


def as_json(fit: Fit, reasons: Purposes) -> dict[str, Any]:
    """The same as plain dicts, lists, strings and numbers."""
    return {
        "fits": fit.holds,
        "claims": [{"name": claim.name, "text": claim.text} for claim in fit.claims],
        "misfits": [_misfit_json(misfit, reasons) for misfit in fit.misfits],
        "notes": [{"name": note.name, "text": note.text, "path": note.where or None} for note in fit.notes],
        "connections": fit.connections,
    }


def _misfit_json(misfit: Misfit, reasons: Purposes) -> dict[str, Any]:
    purposes = reasons(misfit.family)
    return {
        "claim": misfit.claim.name,
        "text": misfit.claim.text,
        "family": misfit.family,
        "found": misfit.actual,
        "path": misfit.where or None,
        "client": misfit.client.speaks if misfit.client else None,
        "explain": path_json(misfit.path, purposes) if misfit.path else None,
    }


def summary(misfit: Misfit, reasons: Purposes) -> str:
    """The claim that is broken, with the end of the connection that shows it."""
    example = f"; a connection: {path_text(misfit.path, reasons(misfit.family))}" if misfit.path else ""
    return f"broken: {misfit.claim.text}{example}"
