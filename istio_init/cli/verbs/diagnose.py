"""`istio-init diagnose`: what is wrong with a pod's capture, which packet shows it, and what to do."""

from __future__ import annotations

import sys
from collections.abc import Mapping  # noqa: TC003 (Typer reads the verb's annotations)
from typing import TYPE_CHECKING, Annotated

import typer

from istio_init.cli.verbs import diagnose_bundle, envoy_flags
from istio_init.cli.verbs.diagnose_pod import situation
from istio_init.cli.verbs.diagnose_question import Question
from istio_init.cli.verbs.output import choice, print_json, show
from istio_init.cli.verbs.packet_flags import endpoint
from istio_init.cli.verbs.subject import Container, FromSave, Pid, Where
from istio_init.errors import InitError, printable
from istio_init.errors_rare import OptionError, UsageError
from istio_init.inspect.diagnose import packets
from istio_init.inspect.diagnose.calls import about_call
from istio_init.inspect.diagnose.causes import causes
from istio_init.inspect.diagnose.report import document, lines
from istio_init.model.rules import IPV4
from istio_init.options.table import OPTIONS, Options

if TYPE_CHECKING:
    from istio_init.inspect.diagnose.case import Situation
    from istio_init.model.packet import Packet

HEALTHY, FAULT, UNKNOWN = 0, 3, 4
# Of the table's options, the one that names a place.
OFFERED = tuple(each for each in OPTIONS if each.field == "network_namespace")


def diagnose(  # noqa: PLR0913 (a command line's options)
    texts: Mapping[str, str],
    pod: Annotated[str, typer.Argument(metavar="[NAMESPACE/]POD", help="A pod of this node, by the runtime.")] = "",
    *,
    container: Container = None,
    pid: Pid = None,
    from_pod: Annotated[
        str, typer.Option("--from-pod", metavar="FILE", help="What was wanted: a pod's manifest, - for standard input.")
    ] = "",
    from_save: FromSave = "",
    cri_socket: Annotated[str, typer.Option(metavar="PATH", help="The runtime's socket. Unset: a usual one.")] = "",
    to: Annotated[str, typer.Option("--to", metavar="HOST:PORT", help="Ask about one call to this address.")] = "",
    source: Annotated[str, typer.Option("--from", metavar="ADDRESS", help="Ask about a call from this client.")] = "",
    url: Annotated[str, typer.Option(metavar="URL", help="Ask about one call; a name is looked up in Envoy.")] = "",
    bundle: Annotated[
        str, typer.Option(metavar="FILE", help="Write all facts, without secrets, to this .tar.gz for an expert.")
    ] = "",
    output: Annotated[str, typer.Option(metavar="text|json", help="For people or for programs.")] = "text",
) -> int:
    """Find out why a pod's calls bypass the sidecar or fail; exit 0 healthy, 3 a fault, 4 if that can't be known."""
    form = choice("--output", output, ("text", "json"))
    netns = texts.get("network_namespace", "")
    if texts.get("network_namespace") == "":
        raise OptionError("--network-namespace", "", "empty: name one, or leave the flag out")
    if url and to:
        raise UsageError("--url, --to: use only one of them")
    question = Question(pod, container, pid, netns, from_pod, from_save, cri_socket)
    try:
        about = situation(question)
        packet = _packet(about, question, to, source, url)
    except (OptionError, UsageError):
        raise
    except InitError as error:
        return _unknown(str(error), form)
    path = packets.followed(about, packet) if packet else None
    faults = causes(about)
    if path:
        faults = about_call(about, faults, path)
    code = FAULT if faults else HEALTHY
    values = document(about, faults, path, code)
    if bundle:
        diagnose_bundle.write(bundle, about, values)
    if form == "json":
        print_json("diagnose", values)
    else:
        show(lines(about, faults, path, _blind(about)))
    return code


def _blind(about: Situation) -> str:
    """What is alone known, where more would be of a running pod."""
    return "" if about.listening is not None else "the dump" if about.live else "the manifest"


def _unknown(why: str, form: str) -> int:
    if form == "json":
        values: dict[str, object] = {
            "code": UNKNOWN,
            "healthy": None,
            "options": None,
            "backends": [],
            "causes": [],
            "call": None,
        }
        print_json("diagnose", {**values, "unknown": why})
    else:
        sys.stdout.write(printable(f"CANNOT KNOW: {why}") + "\n")
    return UNKNOWN


def _packet(about: Situation, question: Question, to: str, source: str, url: str) -> Packet | None:
    """The first packet of the call that is asked about; None where none is."""
    if url:
        to = _of_url(about, question, url)
    if not (to or source):
        return None
    start, end = endpoint("--from", source), endpoint("--to", to)
    if source:
        client = start.address or packets.HOSTS[IPV4][0]
        return packets.inbound(about.facts, client, end.port or packets.APP_PORTS[0])
    host = end.address or packets.HOSTS[IPV4][0]
    return packets.outbound(about.facts, host, packets.PORTS[0] if end.port is None else end.port, _sender(about))


def _sender(about: Situation) -> tuple[int, int]:
    """The ids of the application."""
    app = next((each for each in about.residents if not each.is_proxy and each.uid is not None), None)
    return packets.APP if app is None or app.uid is None else (app.uid, app.gid or 0)


def _of_url(about: Situation, question: Question, url: str) -> str:
    """Where a URL leads: its address, or that of its name in the configuration of the pod's Envoy."""
    parsed = envoy_flags.parse_url(url)
    host, _, port = parsed.host.rpartition(":")
    name = host if host and port.isdecimal() else parsed.host
    try:
        endpoint("--url", f"{name}:{parsed.port}")
    except OptionError:
        options = Options(network_namespace=about.options.network_namespace)
        proxy = envoy_flags.configuration(envoy_flags.ADMIN, options, Where(live=not question.save))
        return envoy_flags.destination(proxy, parsed, inbound=False)
    return f"{name}:{parsed.port}"
