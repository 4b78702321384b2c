"""A page in one file: the picture, the purpose of each rule, and a form to follow a packet. It loads nothing.

Its content security policy allows only its own style sheet and script, by their digests, and no markup from text.
Text from a user or the kernel is escaped here; scripts treat it as text.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shlex
from html import escape
from string import Template
from typing import TYPE_CHECKING, Any

from istio_init.draw.graph import build_graph
from istio_init.draw.html.model import model
from istio_init.draw.layout import draw
from istio_init.draw.svg import elements, style
from istio_init.errors import printable
from istio_init.formats.iptables_save import rule_text
from istio_init.model.extensions import CT_STATES
from istio_init.model.rules import FAMILIES, Ruleset
from istio_init.options.arguments import arguments
from istio_init.simulate.purposes import purposes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from istio_init.draw.graph import Box, Graph, GraphRow
    from istio_init.draw.html.model import PageSubject
    from istio_init.model.rules import Family
    from istio_init.simulate.report import TextLine

# In the order of their dependencies. The first ones follow packets, without using the page.
WALK = ("addresses", "packet", "semantics", "trace", "path", "request", "command", "report", "highlight")
SCRIPTS = (*WALK, "elements", "words", "answer", "proxy", "lighting", "view")
TITLES: dict[Family, str] = {"ipv4": "IPv4", "ipv6": "IPv6"}
STATES = tuple(state for state in CT_STATES if state not in {"SNAT", "DNAT"})
TITLE_OF_NINE = "The nine rules"
ABOUT_NINE = (
    "Of chain ISTIO_OUTPUT, numbered as in “Sidecar injection, transparent traffic hijacking and routing in "
    "Istio” (Jimmy Song), whose figure has the steps."
)
WIDER = "Wider than the window? Scroll sideways, or use the arrow keys once the picture has the focus."
ABOUT_PROXY = "What Envoy's configuration does with the packet that this page was made for."
OTHER_PACKET = (
    "The packet in the form is another one, and this page does not have Envoy's part for it. Ask for it with:"
)


def document(about: PageSubject, defaults: Mapping[str, Any], values: Mapping[str, Any], family: Family) -> str:
    """The page's text, with the packet that is `values` in its form, and `family` shown where it has no address.

    `defaults` is what the scripts take where a packet says nothing (cli/verbs/packet_flags.py).
    """
    sheet = style() + _file("style.css")
    script = '"use strict";\n' + "\n".join(_file(f"{name}.js") for name in SCRIPTS)
    graphs = {each: _graph(about, each) for each in FAMILIES}
    words = [word for word in arguments(about.options) if not word.startswith("--log_")]
    return Template(_file("page.html")).substitute(
        policy=_policy(sheet, script),
        sheet=sheet,
        about=_heading(about),
        command=_text(shlex.join(["istio-iptables", *words])),
        states="".join(f"<option>{state}</option>" for state in STATES),
        families="\n".join(_choice(each) for each in FAMILIES),
        proxy=_proxy(about.proxy),
        pictures="\n".join(_picture(graphs[each], hidden=each != family) for each in FAMILIES),
        explanations="\n".join(_explanations(graphs[each], hidden=each != family) for each in FAMILIES),
        model=_json({**model(about), **defaults, "typed": values, "family": family}),
        script=script,
    )


def _heading(about: PageSubject) -> str:
    """What comes before the command line at the top of the page."""
    purposes_from = "Purposes and flags are those of"
    if about.saved:
        return f"The rules of a dump (--from-save). {purposes_from}"
    return (
        f"The rules in a network namespace when this page was made. {purposes_from}" if about.live else "The rules of"
    )


def _file(name: str) -> str:
    """A file next to this one. Modules of the image, which are in one archive, have no __file__."""
    beside = os.path.dirname(_file.__code__.co_filename)
    with open(os.path.join(beside, name), encoding="utf-8") as file:
        return file.read()


def _policy(sheet: str, script: str) -> str:
    style_digest, script_digest = (
        base64.b64encode(hashlib.sha256(each.encode()).digest()).decode() for each in (sheet, script)
    )
    return (
        f"default-src 'none'; style-src 'sha256-{style_digest}'; script-src 'sha256-{script_digest}'; "
        "base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'"
    )


def _json(value: object) -> str:
    """JSON that cannot end the element that contains it."""
    text = json.dumps(value, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _graph(about: PageSubject, family: Family) -> Graph:
    ruleset = next((ruleset for ruleset in about.rulesets if ruleset.family == family), Ruleset(family, ()))
    return build_graph(ruleset, purposes(about.options, family), about.envoy)


def _text(text: str) -> str:
    return escape(printable(text))


def _choice(family: Family) -> str:
    title = TITLES[family]
    return f'<label><input type="radio" name="family" value="{family}"><span>{title}</span></label>'


def _picture(graph: Graph, *, hidden: bool) -> str:
    """One family's picture, in a frame that can be scrolled with the mouse or the keyboard."""
    family, title = graph.family, TITLES[graph.family]
    label = f"The chains of {title}, hooks from left to right"
    if not graph.boxes:
        return (
            f'<div class="frame" data-family="{family}"{_hidden(hidden)}><p>There are no rules for {title}.</p></div>'
        )
    picture = draw(graph)
    width, height = f"{picture.width:g}", f"{picture.height:g}"
    return (
        f'<div class="frame" data-family="{family}" tabindex="0" role="region" aria-label="{label}"{_hidden(hidden)}>\n'
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" class="chart" role="img" '
        f'aria-label="{label}; what each rule is for is explained below">\n{elements(picture)}</svg></div>\n'
        f'<p class="more" data-family="{family}"{_hidden(hidden)} data-t>{WIDER}</p>'
    )


def _proxy(lines: Sequence[TextLine]) -> str:
    """What the proxy's own configuration does with the packet that the page was made for; nothing without one.

    The scripts show it for that packet alone, and for every other one the command that asks for the same.
    """
    if not lines:
        return ""
    parts = [f'<p class="{line.style}" data-depth="{line.depth}">{_text(line.text)}</p>' for line in lines if line.text]
    return (
        '<section id="proxy" aria-labelledby="proxy-title">\n<h2 id="proxy-title" data-t>Through the proxy</h2>\n'
        f"<p data-t>{ABOUT_PROXY}</p>\n"
        f'<p id="proxy-other" hidden><span data-t>{OTHER_PACKET}</span> <code id="proxy-command"></code></p>\n'
        f'<div id="proxy-lines">{"".join(parts)}</div>\n</section>\n'
    )


def _explanations(graph: Graph, *, hidden: bool) -> str:
    """The purpose of each rule: the nine that the article numbers, then the others, chain by chain."""
    nine = [(box, row) for box in graph.boxes for row in box.rows if row.nine]
    nine.sort(key=lambda each: each[1].nine)
    parts = [f'<div data-family="{graph.family}"{_hidden(hidden)}>\n']
    if nine:
        parts += [f"<section>\n<h2 data-t>{TITLE_OF_NINE}</h2>\n<p>{ABOUT_NINE}</p>\n", _list(nine), "</section>\n"]
    others = [(box, [row for row in box.rows if row.rule and not row.nine]) for box in graph.boxes]
    if any(rows for _, rows in others):
        parts.append("<section>\n<h2 data-t>All other rules</h2>\n")
        for box, rows in others:
            if rows:
                parts.append(f"<h3>{_text(box.name)} <small>{box.table}</small></h3>\n")
                parts.append(_list([(box, row) for row in rows]))
        parts.append("</section>\n")
    return "".join((*parts, "</div>"))


def _list(rows: Sequence[tuple[Box, GraphRow]]) -> str:
    return "".join(('<ul class="rules">\n', *(_explanation(box, row) for box, row in rows), "</ul>\n"))


def _explanation(box: Box, row: GraphRow) -> str:
    """One rule: its purpose, its iptables syntax, and the flags that made it."""
    why = row.why
    number = f'<b class="nine">{row.nine}</b>' if row.nine else f'<b class="number">{row.number}</b>'
    purpose = _text(why.text) if why else "not in the plan of these options"
    facts = [f"{_text(box.name)} rule {row.number}"] if row.nine else []
    if why:
        steps = f"steps {why.steps}" if " " in why.steps else f"step {why.steps}"
        facts += [f"the article's {steps}"] if why.steps else []
        flags = " ".join(f"<code>{_text(flag)}</code>" for flag in why.flags)
        facts += [f"made by {flags}" if flags else "in every plan"]
        facts += [f"set by <code>{_text(name)}</code>" for name in why.annotations]
    rule = _text(rule_text(row.rule)) if row.rule else ""
    return (
        f'<li data-key="{_text(row.key)}">{number}<div><p>{purpose} <span class="met"></span></p>'
        f'<code>{rule}</code><p class="facts">{" · ".join(facts)}</p></div></li>\n'
    )


def _hidden(hidden: bool) -> str:  # noqa: FBT001 (an attribute, or none)
    return " hidden" if hidden else ""
