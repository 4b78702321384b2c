"""`istio-init draw`: the chains as a picture, and one packet's path through them."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from istio_init.cli.pod_owners import with_ipv6
from istio_init.cli.verbs import envoy_flags, packet_flags
from istio_init.cli.verbs.output import choice, json_text
from istio_init.cli.verbs.subject import Container, FromSave, Pid, Where, is_live, pod_addresses, subject
from istio_init.draw.data import as_json
from istio_init.draw.dot import dot
from istio_init.draw.graph import build_graph
from istio_init.draw.highlight import highlights
from istio_init.draw.html.document import document
from istio_init.draw.html.model import PageSubject
from istio_init.draw.layout import draw as picture
from istio_init.draw.mermaid import mermaid
from istio_init.draw.svg import svg
from istio_init.envoy import wording
from istio_init.errors import InitError
from istio_init.errors_rare import OptionError, UsageError
from istio_init.model.rules import IPV4, IPV6
from istio_init.options.table import Options  # noqa: TC001 (Typer reads the verb's annotations)
from istio_init.simulate.path import follow
from istio_init.simulate.purposes import purposes
from istio_init.simulate.report import fate, stop

if TYPE_CHECKING:
    from collections.abc import Mapping

    from istio_init.cli.verbs.subject import Subject
    from istio_init.draw.graph import Graph
    from istio_init.draw.highlight import Highlight
    from istio_init.model.rules import Family
    from istio_init.simulate.report import TextLine

FORMS = ("mermaid", "dot", "svg", "html")


def draw(  # noqa: PLR0913 (a command line's options)
    options: Options,
    *,
    form: Annotated[str, typer.Option("--format", metavar="|".join(FORMS), help="The format of the picture.")] = "svg",
    family: Annotated[
        str,
        typer.Option(
            "--ip-family",
            "--family",
            metavar="ipv4|ipv6",
            help="The family of the rules. Unset: the packet's, else IPv4.",
        ),
    ] = "",
    file: Annotated[str, typer.Option(metavar="PATH", help="Where to write it; unset: standard output.")] = "",
    flags: packet_flags.PacketFlags = packet_flags.NO_FLAGS,
    pod_address: packet_flags.PodAddress = "",
    runs_as: packet_flags.RunsAs = "",
    envoy: envoy_flags.Source = "",
    host: envoy_flags.Host = "",
    path: envoy_flags.PathName = "",
    speaks: envoy_flags.Speaks = "",
    output: Annotated[
        str, typer.Option("--output", metavar="text|json", help="json: the chains as data instead of a picture.")
    ] = "text",
    live: Annotated[bool, typer.Option("--live", help="Draw the rules in the kernel, not the plan.")] = False,
    pid: Pid = None,
    container: Container = None,
    from_save: FromSave = "",
) -> int:
    """Draw the chains; with --outbound or --inbound, a packet's path through them as well."""
    choice("--format", form, FORMS)
    as_data = choice("--output", output, ("text", "json")) == "json"
    if as_data and form == "html":
        raise UsageError("--output json: a page is for people; leave --format out")
    chosen_family: Family | None = choice("--ip-family", family, (IPV4, IPV6)) if family else None  # type: ignore[assignment]
    request = None
    if flags.inbound or flags.outbound:
        request = packet_flags.parse_request(flags)
        if request.addressed and chosen_family not in {None, request.family}:
            raise OptionError("--ip-family", family, f"the packet is {request.family}")
        chosen_family = request.family if request.addressed else chosen_family
    elif flags.source or flags.destination:
        raise UsageError("--from, --to: the packet needs a direction: add --outbound or --inbound")
    where = Where(live, pid, container, from_save)
    live = is_live(options, where)
    http = envoy_flags.RequestFlags(host=host, path=path, speaks=speaks)
    proxy = envoy_flags.proxy(envoy, http, options, where)
    if proxy and (form != "html" or request is None):
        raise UsageError("--envoy: only a page shows the proxy: add --format html and --outbound or --inbound")
    if (chosen_family == IPV6 or form == "html") and not (live or from_save):
        options = with_ipv6(options, default=True)
    about = subject(options, where, pod_addresses(pod_address))
    if form == "html":
        lines: tuple[TextLine, ...] = ()
        explain = ""
        if proxy and request:
            of_request = packet_flags.with_request(about, request, runs_as)
            packet = packet_flags.packet(request, of_request, chosen_family or IPV4)
            answers = envoy_flags.answers_to(of_request, proxy, packet, http, inbound=flags.inbound)
            lines = tuple(wording.proxy_lines(answers, purposes(about.options, packet.family)))
            explain = envoy_flags.explain_command(options, where, envoy, http, pod_address, runs_as)
        values = packet_flags.form_values(request, flags) if request else {}
        _write(_page(packet_flags.run_as(about, runs_as), values, chosen_family or IPV4, lines, explain), file)
    else:
        _write(_drawing(about, chosen_family or IPV4, request, runs_as, "json" if as_data else form), file)
    return 0


def _page(about: Subject, values: Mapping[str, Any], family: Family, proxy: tuple[TextLine, ...], explain: str) -> str:
    matter = PageSubject(
        about.options, about.rulesets, about.facts, about.envoy, about.live, proxy, explain, about.saved
    )
    return document(matter, packet_flags.form_defaults(), values, family)


def _drawing(
    about: Subject, family: Family, request: packet_flags.PacketRequest | None, runs_as: str, form: str
) -> str:
    reasons = purposes(about.options, family)
    graph = build_graph(about.ruleset(family), reasons, about.envoy)
    highlighted: tuple[Highlight, ...] = ()
    captions: list[str] = []
    if request:
        about = packet_flags.with_request(about, request, runs_as)
        path = follow(about.ruleset(family), packet_flags.packet(request, about, family), about.facts, about.envoy)
        highlighted = highlights(path, graph)
        captions = [f"{at}. From {leg.sender}: {fate(leg, reasons)}." for at, leg in enumerate(path.legs, 1)]
        captions += ["It reaches the same listener again: a loop."] * bool(path.loop)
        captions += [why] if (why := stop(path)) else []
    return _rendered(form, graph, highlighted, captions)


def _rendered(form: str, graph: Graph, highlighted: tuple[Highlight, ...], captions: list[str]) -> str:
    if form == "json":
        return json_text("draw", as_json(graph, highlighted, captions))
    if form == "mermaid":
        return mermaid(graph, highlighted)
    return dot(graph, highlighted) if form == "dot" else svg(picture(graph), highlighted, captions)


def _write(text: str, path: str) -> None:
    if not path:
        sys.stdout.write(text)
        return
    try:
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise InitError(f"--file: {path!r}: can't be written: {error.strerror}") from None
