"""`istio-init explain`: one packet's way, rule by rule, and on through the proxy to where it ends."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from istio_init.cli.verbs import packet_flags
from istio_init.cli.verbs.output import choice, show
from istio_init.cli.verbs.subject import LiveContainer, LiveNetns, LivePid, Where, pod_addresses, subject
from istio_init.model.rules import IPV6
from istio_init.options.table import Options  # noqa: TC001 (Typer reads the verb's annotations)
from istio_init.simulate.path import follow
from istio_init.simulate.purposes import purposes
from istio_init.simulate.report import as_json, lines


def explain(  # noqa: PLR0913 (a command line's options)
    options: Options,
    *,
    outbound: packet_flags.Outbound = False,
    inbound: packet_flags.Inbound = False,
    source: packet_flags.From = "",
    destination: packet_flags.To = "",
    protocol: packet_flags.ProtocolName = "tcp",
    interface: packet_flags.Interface = "",
    uid: packet_flags.Uid = "",
    gid: packet_flags.Gid = "",
    mark: packet_flags.Mark = "0",
    connmark: packet_flags.ConnMark = "0",
    state: packet_flags.State = "NEW",
    reply: packet_flags.Reply = False,
    pod_address: packet_flags.PodAddress = "",
    runs_as: packet_flags.RunsAs = "",
    live: Annotated[bool, typer.Option("--live", help="Ask about what the kernel holds, not the plan.")] = False,
    pid: LivePid = None,
    netns: LiveNetns = None,
    container: LiveContainer = None,
    output: Annotated[str, typer.Option(metavar="text|json", help="For people or for programs.")] = "text",
) -> int:
    """Tell one packet's way through the rules, and on through the proxy, and where it ends."""
    form = choice("--output", output, ("text", "json"))
    request = packet_flags.parse_request(
        outbound=outbound, inbound=inbound, source=source, destination=destination, protocol=protocol,
        interface=interface, uid=uid, gid=gid, mark=mark, connmark=connmark, state=state, reply=reply,
    )  # fmt: skip
    if request.family == IPV6 and options.enable_ipv6 is None and not live:
        options = options.replace(enable_ipv6=True)
    about = subject(options, Where(live, pid, netns, container), pod_addresses(pod_address))
    about = packet_flags.with_request(about, request, runs_as)
    packet = packet_flags.packet(request, about)
    path = follow(about.ruleset(request.family), packet, about.facts, about.envoy)
    known = purposes(about.options, request.family)
    if form == "json":
        sys.stdout.write(json.dumps(as_json(path, known), indent=2) + "\n")
    else:
        show(lines(path, known))
    return 0
