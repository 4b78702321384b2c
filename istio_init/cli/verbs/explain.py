"""`istio-init explain`: one packet's path through the rules, and on through the proxy to where it ends."""

from __future__ import annotations

from itertools import chain
from typing import Annotated

import typer

from istio_init.cli.pod_owners import with_ipv6
from istio_init.cli.verbs import envoy_flags, packet_flags, who_runs
from istio_init.cli.verbs.output import choice, print_json, show
from istio_init.cli.verbs.subject import Container, FromSave, Pid, Where, is_live, pod_addresses, subject
from istio_init.envoy import wording
from istio_init.model.rules import IPV6
from istio_init.options.table import Options  # noqa: TC001 (Typer reads the verb's annotations)
from istio_init.simulate.order import other_order
from istio_init.simulate.path import follow
from istio_init.simulate.purposes import purposes
from istio_init.simulate.report import TextLine, lines
from istio_init.simulate.report_json import as_json

ARTICLE = (
    "Numbers of rules and steps: “Sidecar injection, transparent traffic hijacking and routing in Istio” (Jimmy Song, "
    "2022, for Istio 1.13)"
)


def explain(  # noqa: PLR0913 (a command line's options)
    options: Options,
    *,
    flags: packet_flags.PacketFlags = packet_flags.NO_FLAGS,
    pod_address: packet_flags.PodAddress = "",
    runs_as: packet_flags.RunsAs = "",
    envoy: envoy_flags.Source = "",
    url: envoy_flags.Url = "",
    host: envoy_flags.Host = "",
    path: envoy_flags.PathName = "",
    method: envoy_flags.Method = "",
    header: envoy_flags.Header = None,
    speaks: envoy_flags.Speaks = "",
    sni: envoy_flags.Sni = "",
    live: Annotated[bool, typer.Option("--live", help="Use the rules in the kernel, not the plan.")] = False,
    pid: Pid = None,
    container: Container = None,
    from_save: FromSave = "",
    steps: Annotated[bool, typer.Option("--steps", help="Number the rules and steps as in docs/explain.md.")] = False,
    output: Annotated[str, typer.Option(metavar="text|json", help="For people or for programs.")] = "text",
) -> int:
    """Show one packet's path through the rules and the proxy, and where it ends."""
    form = choice("--output", output, ("text", "json"))
    where = Where(live, pid, container, from_save)
    live = is_live(options, where)
    http = envoy_flags.RequestFlags(url, host, path, method, tuple(header or ()), speaks, sni)
    proxy = envoy_flags.proxy(envoy, http, options, where)
    parsed = envoy_flags.parse_url(url) if url else None
    if parsed and not flags.inbound:
        flags = flags.replace(outbound=True)
    if parsed and proxy and not flags.destination:
        flags = flags.replace(destination=envoy_flags.destination(proxy, parsed, inbound=flags.inbound))
    request = packet_flags.parse_request(flags)
    if request.family == IPV6 and not (live or from_save):
        options = with_ipv6(options, default=True)
    who = who_runs.residents(where)
    if not flags.uid and not flags.gid:
        owner = who_runs.sender(who)
        request = request.replace(uid=owner[0], gid=owner[1])
    about = who_runs.with_proxy(subject(options, where, pod_addresses(pod_address), with_foreign_tables=True), who)
    about = packet_flags.with_request(about, request, runs_as)
    packet = packet_flags.packet(request, about)
    reasons = purposes(about.options, request.family)
    if proxy:
        answers = envoy_flags.answers_to(about, proxy, packet, http, inbound=flags.inbound)
        text, values = wording.lines(answers, reasons, steps=steps), wording.as_json(answers, reasons)
    else:
        packet_path = follow(about.ruleset(request.family), packet, about.facts, about.envoy)
        text, values = lines(packet_path, reasons, steps=steps), as_json(packet_path, reasons)
        other = other_order(about.ruleset(request.family), packet_path, about.facts, about.envoy, reasons)
        if other:
            text, values = chain((TextLine("trouble", 0, f"warning: {other}"),), text), {**values, "warnings": [other]}
    if form == "json":
        print_json("explain-envoy" if proxy else "explain", values)
    else:
        show([TextLine("purpose", 0, ARTICLE), TextLine("hook", 0, "")] if steps else [])
        show(text)
    return 0
