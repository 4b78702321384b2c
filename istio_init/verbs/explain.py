"""`istio-init explain`: one packet's way, rule by rule, and on through the proxy to where it ends."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from istio_init.explain import as_json, lines
from istio_init.journey import follow
from istio_init.netfilter import IPV6
from istio_init.options import Options  # noqa: TC001 (Typer reads the verb's annotations)
from istio_init.purposes import purposes
from istio_init.verbs import question
from istio_init.verbs.output import choice, show
from istio_init.verbs.subject import LiveContainer, LiveNetns, LivePid, Where, pod_addresses, subject


def explain(  # noqa: PLR0913 (a command line's options)
    options: Options,
    *,
    outbound: question.Outbound = False,
    inbound: question.Inbound = False,
    source: question.From = "",
    destination: question.To = "",
    protocol: question.ProtocolName = "tcp",
    interface: question.Interface = "",
    uid: question.Uid = "",
    gid: question.Gid = "",
    mark: question.Mark = "0",
    connmark: question.ConnMark = "0",
    state: question.State = "NEW",
    reply: question.Reply = False,
    pod_address: question.PodAddress = "",
    runs_as: question.RunsAs = "",
    live: Annotated[bool, typer.Option("--live", help="Ask about what the kernel holds, not the plan.")] = False,
    pid: LivePid = None,
    netns: LiveNetns = None,
    container: LiveContainer = None,
    output: Annotated[str, typer.Option(metavar="text|json", help="For people or for programs.")] = "text",
) -> int:
    """Tell one packet's way through the rules, and on through the proxy, and where it ends."""
    form = choice("--output", output, ("text", "json"))
    asked = question.ask(
        outbound=outbound, inbound=inbound, source=source, destination=destination, protocol=protocol,
        interface=interface, uid=uid, gid=gid, mark=mark, connmark=connmark, state=state, reply=reply,
    )  # fmt: skip
    if asked.family == IPV6 and options.enable_ipv6 is None and not live:
        options = options.replace(enable_ipv6=True)
    about = subject(options, Where(live, pid, netns, container), pod_addresses(pod_address))
    about = question.settled(about, asked, runs_as)
    packet = question.packet(asked, about)
    journey = follow(about.ruleset(asked.family), packet, about.facts, about.envoy)
    known = purposes(about.options, asked.family)
    if form == "json":
        sys.stdout.write(json.dumps(as_json(journey, known), indent=2) + "\n")
    else:
        show(lines(journey, known))
    return 0
