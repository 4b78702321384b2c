"""One call that a diagnosis is asked about: its destination's address, its packet, and its path through the sidecar."""

from __future__ import annotations

from typing import TYPE_CHECKING

from istio_init.cli.verbs import envoy_flags
from istio_init.cli.verbs.packet_flags import endpoint
from istio_init.cli.verbs.subject import Where
from istio_init.envoy.names import address_of
from istio_init.envoy.path import Pod, answers
from istio_init.envoy.wording import FLAGS, as_json, end_text, is_good, path_text
from istio_init.errors import InitError, KernelError, shown
from istio_init.errors_rare import OptionError, UsageError
from istio_init.formats.addresses import address_text
from istio_init.inspect.diagnose import packets
from istio_init.inspect.diagnose.case import Cause
from istio_init.kernel.host import envoy_admin, pod_names
from istio_init.model.rules import IPV4
from istio_init.options.table import Options
from istio_init.record import Record
from istio_init.runner import access
from istio_init.simulate.purposes import purposes
from istio_init.simulate.report import verdict

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from istio_init.cli.verbs.envoy_flags import ParsedUrl
    from istio_init.envoy.passage import Passage
    from istio_init.envoy.path import Answer, Path
    from istio_init.envoy.walk import Configuration
    from istio_init.inspect.diagnose.case import Situation
    from istio_init.model.packet import Packet
    from istio_init.simulate.path import PacketPath

REMEDIES = {
    "NR": "no route has this host and path: see the Host header, the VirtualService, and the Sidecar's egress hosts",
    "UH": "no endpoint takes calls: kubectl get endpointslices; a subset (DestinationRule) without pods; ejected hosts",
    "UF": "the endpoint refuses the sidecar's connection: is it up, and does it expect mutual TLS?",
    "NC": "the route leads to a cluster that the sidecar does not have: a service or a subset that does not exist",
    "DPE": "the client does not speak what the listener expects: name the Service's port by its protocol (http-...)",
}
STEPS = "istio-init explain --live --envoy http://127.0.0.1:15000 --url ... shows each step in the sidecar"
MOST_STEPS = 3


class CallFlags(Record):
    """The flags that name one call, as they were given."""

    to: str = ""
    source: str = ""
    url: str = ""
    envoy: str = ""

    @property
    def any(self) -> bool:
        """Whether they name one."""
        return bool(self.to or self.source or self.url)


class Call(Record):
    """A call: its first packet's path through the rules, what the sidecar does with it, and remarks about it.

    `answers` are empty where the sidecar was not asked.
    """

    path: PacketPath
    answers: tuple[Answer, ...] = ()
    remarks: tuple[str, ...] = ()


class UnknownName(InitError):
    """A name that has no address in the pod."""


def call(about: Situation, flags: CallFlags) -> Call | None:
    """The call that the flags name; None where they name none.

    OptionError or UsageError for bad flags; UnknownName where a name has no address.
    """
    if not flags.any:
        return None
    if flags.url and flags.to:
        raise UsageError("--url, --to: use only one of them")
    url = envoy_flags.parse_url(flags.url) if flags.url else None
    proxy, remark = _proxy(about, flags, url)
    packet, origin = _packet(about, flags, url, proxy)
    path = packets.followed(about, packet)
    remarks = tuple(each for each in (origin, remark) if each)
    if proxy is None or url is None or verdict(path) != "captured":
        return Call(path, remarks=remarks)
    inbound = packet.hook == "PREROUTING"
    clients = envoy_flags.clients(envoy_flags.RequestFlags(url=flags.url), url, url.host, inbound=inbound)
    pod = Pod(about.ruleset(packet.family), about.facts, about.envoy, proxy)
    return Call(path, answers(pod, packet, clients), remarks)


def _proxy(about: Situation, flags: CallFlags, url: ParsedUrl | None) -> tuple[Configuration | None, str]:
    """The sidecar's configuration, where one is needed, or why there is none."""
    options = Options(network_namespace=about.options.network_namespace)
    where = Where(live=about.live and about.listening is not None)
    if flags.envoy:
        return envoy_flags.configuration(flags.envoy, options, where), ""
    named = _name(flags.to) or (url is not None)
    if not named or not where.live:
        return None, ""
    if envoy_admin.DEFAULT_PORT not in (about.listening or ()):
        return None, "the sidecar's routes are not known: nobody listens on its admin port (15000)"
    try:
        return envoy_flags.configuration(envoy_flags.ADMIN, options, where), ""
    except (KernelError, OptionError) as error:
        return None, f"the sidecar's routes are not known: {error}"


def _name(to: str) -> str:
    """The name in --to HOST:PORT; empty where it has an address, or none."""
    host, colon, port = to.rpartition(":")
    name = host if colon and (port.isdecimal() or not port) else to
    try:
        endpoint("--to", to)
    except OptionError:
        if name and all(each.isalnum() or each in "-._" for each in name):
            return name
        raise
    return ""


def _packet(
    about: Situation, flags: CallFlags, url: ParsedUrl | None, proxy: Configuration | None
) -> tuple[Packet, str]:
    """The first packet, and where its destination's address is from."""
    if flags.source:
        client = endpoint("--from", flags.source).address or packets.HOSTS[IPV4][0]
        port = url.port if url else endpoint("--to", flags.to).port or packets.APP_PORTS[0]
        return packets.inbound(about.facts, client, port), ""
    if url:
        host = url.name
        try:
            address = endpoint("--url", host).address
        except OptionError:
            address = None
        port, name = url.port, "" if address else host
    else:
        name = _name(flags.to)
        parsed = endpoint("--to", flags.to.removeprefix(name))
        address, port = parsed.address, packets.PORTS[0] if parsed.port is None else parsed.port
    origin = ""
    if name:
        address, source = _resolved(about, name, port, proxy)
        origin = f"{shown(name)[1:-1]} is {address_text(address)}, by {source}"
    return packets.outbound(about.facts, address or packets.HOSTS[IPV4][0], port, _sender(about)), origin


def _sender(about: Situation) -> tuple[int, int]:
    """The ids of the application."""
    app = next((each for each in about.residents if not each.is_proxy and each.uid is not None), None)
    return packets.APP if app is None or app.uid is None else (app.uid, app.gid or 0)


def _resolved(about: Situation, name: str, port: int, proxy: Configuration | None) -> tuple[bytes, str]:
    """A name's address and where it is from: the pod's hosts file, the sidecar's services, DNS as the app asks it."""
    if address := about.hosts.get(name.lower()):
        return address, "the pod's hostAliases"
    app = next((each for each in about.residents if each.pid and not each.is_proxy), None)
    files = pod_names.files_of(app.pid) if app and app.pid else None
    if files and (address := files.hosts.get(name.lower())):
        return address, "the pod's /etc/hosts"
    if proxy and (address := address_of(proxy, name, port)):
        return address, "the sidecar's configuration"
    if files is None:
        where = "the sidecar's configuration does not have it" if proxy else "there is no sidecar to ask"
        why = f"{where}, and no process of the app shows its /etc/hosts and resolv.conf"
        raise UnknownName(f"{shown(name)}: no address is known: {why}; give the address")
    try:
        with access.namespace(about.options):
            resolved = pod_names.resolve(name, files)
    except KernelError as error:
        raise UnknownName(str(error)) from None
    return resolved.address, resolved.source


def sidecar_causes(about: Situation, call: Call) -> tuple[Cause, ...]:
    """What the sidecar does with a call instead of passing it on."""
    reasons = purposes(about.options, call.path.legs[0].packet.family)
    failed = [path for answer in call.answers for path in answer.paths if not is_good(path) and not path.conditions]
    if not failed:
        return ()
    path = failed[0]
    passage = path.passages[-1] if path.passages else None
    flag = path.flag
    remedy = tuple(each for each in (REMEDIES.get(flag), STEPS) if each)
    return (
        Cause(
            "sidecar-route" if flag else "sidecar-call",
            _verdict(path, passage),
            f"{FLAGS[flag]}: {path_text(path, reasons)}" if flag in FLAGS else path_text(path, reasons),
            tuple(_evidence(passage)),
            remedy,
            call.path,
        ),
    )


def _verdict(path: Path, passage: Passage | None) -> str:
    if path.loop:
        return "the call goes round in a loop"
    if passage is not None and path.stages[-1] is passage:
        status = passage.end.status
        return f"the sidecar answers the call itself, with {status}" if status else "the sidecar closes the call"
    return "the sidecar takes the call, and its own does not arrive"


def _evidence(passage: Passage | None) -> Iterator[str]:
    if passage is None:
        return
    for step in passage.steps[-MOST_STEPS:]:
        others = f" (not {step.others[0].name}: {step.others[0].why})" if step.others else ""
        yield f"{step.part}: {step.text}{others}"
    if not passage.steps:
        yield end_text(passage)


def remarks(about: Situation, call: Call) -> Iterator[str]:
    """What else is to be known of the call."""
    reasons = purposes(about.options, call.path.legs[0].packet.family)
    yield from call.remarks
    for answer in call.answers:
        for path in answer.paths:
            unless = f"; undecided: {path.conditions[0]}" if path.conditions else ""
            yield f"the call {path_text(path, reasons)}{unless}" if is_good(path) else path_text(path, reasons) + unless


def answers_json(about: Situation, call: Call | None) -> list[dict[str, Any]] | None:
    """The sidecar's part as JSON; None where it was not asked."""
    if call is None or not call.answers:
        return None
    reasons = purposes(about.options, call.path.legs[0].packet.family)
    listed: list[dict[str, Any]] = as_json(call.answers, reasons)["answers"]
    return listed
