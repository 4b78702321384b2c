"""Who runs in a pod, from its manifest or from /proc: whose packets verbs ask about, and what that means."""

from __future__ import annotations

from typing import TYPE_CHECKING

from istio_init.cli.pod_owners import pod_owners
from istio_init.errors import printable
from istio_init.kernel.host import containers, processes
from istio_init.model.packet import Packet
from istio_init.model.rules import TCP
from istio_init.options.cni_pod import PROXY_CONTAINER
from istio_init.options.workload import RunsAs
from istio_init.record import Record
from istio_init.simulate.path import follow, routed
from istio_init.simulate.report import ENDS, verdict
from istio_init.verify.report import Fault

if TYPE_CHECKING:
    from collections.abc import Iterator

    from istio_init.cli.verbs.subject import Subject, Where
    from istio_init.model.rules import Family
    from istio_init.simulate.path import PacketPath

PROXIES = frozenset({"envoy", "pilot-agent"})
# An application that is not the proxy.
APPLICATION_ID = 1000
APP_PORT, WORLD_PORT, CLIENT_PORT = 8080, 443, 40000


class Residents(Record):
    """The applications in the pod, the one that is meant first, and the proxy; those whose ids are known."""

    applications: tuple[RunsAs, ...] = ()
    proxy: RunsAs | None = None


def residents(where: Where) -> Residents:
    """Who runs in the pod: of the process or container that is named, else of the manifest; nobody where none is."""
    if where.pid is not None or where.container is not None:
        return _processes(where)
    known = [each for each in pod_owners.get() if each.uid is not None or each.gid is not None]
    applications = tuple(each for each in known if not each.init and each.container != PROXY_CONTAINER)
    return Residents(applications, next((each for each in known if each.container == PROXY_CONTAINER), None))


def _processes(where: Where) -> Residents:
    pid = containers.pid_of(where.container) if where.container is not None else where.pid
    found = processes.sharing_network(pid) if pid is not None else ()
    # The one that was named first, then the others; of those that are alike one.
    by_ids: dict[tuple[str, int, int], RunsAs] = {}
    for each in sorted(found, key=lambda process: process.pid != pid):
        title = f"{printable(each.name)} (process {each.pid})"
        by_ids.setdefault((each.name, each.uid, each.gid), RunsAs(title, init=False, uid=each.uid, gid=each.gid))
    proxies = [owner for (name, _, _), owner in by_ids.items() if name in PROXIES]
    applications = tuple(owner for (name, _, _), owner in by_ids.items() if name not in PROXIES)
    return Residents(applications, next(iter(proxies), None))


def with_proxy(about: Subject, who: Residents) -> Subject:
    """The subject with the proxy as it runs."""
    if who.proxy is None:
        return about
    envoy = about.envoy
    uid = envoy.uid if who.proxy.uid is None else who.proxy.uid
    return about.replace(envoy=envoy.replace(uid=uid, gid=envoy.gid if who.proxy.gid is None else who.proxy.gid))


def sender(who: Residents) -> tuple[int, int]:
    """The ids of the application that is asked about, where nothing else is said. Without a group it has root's."""
    app = next((each for each in who.applications if each.uid is not None), None)
    if app is None or app.uid is None:
        return APPLICATION_ID, APPLICATION_ID
    return app.uid, 0 if app.gid is None else app.gid


def faults(about: Subject, who: Residents) -> Iterator[Fault]:
    """What comes of who runs: applications that the rules take for the proxy, a proxy that they take for one."""
    options = about.options
    for family in (ruleset.family for ruleset in about.rulesets):
        usual = _sent(about, family, (APPLICATION_ID, APPLICATION_ID))
        for app in who.applications:
            ids = sender(Residents((app,)))
            # Other ids may be left out on purpose, such as those of --istio-outbound-owner-groups-exclude.
            if ids[0] not in options.proxy_uid and ids[1] not in (options.proxy_gid or options.proxy_uid):
                continue
            path = _sent(about, family, ids)
            if verdict(path) != verdict(usual):
                claim = f"traffic of {app.container} (uid {ids[0]}, gid {ids[1]}) is treated as any application's"
                yield Fault(claim, path.legs[0].packet, _end(usual), _end(path))
        if who.proxy is not None:
            for path in (_sent(about, family, (about.envoy.uid, about.envoy.gid)), _received(about, family)):
                if path.loop:
                    who_it_is = f"{who.proxy.container} (uid {about.envoy.uid}, gid {about.envoy.gid})"
                    claim = f"traffic of {who_it_is} is treated as the proxy's"
                    yield Fault(claim, path.legs[0].packet, "no loop", f"{ENDS[path.loop]} again, without end")


def _end(path: PacketPath) -> str:
    return f"{verdict(path)}: {ENDS[path.legs[0].end]}".rstrip(", ")


def _sent(about: Subject, family: Family, ids: tuple[int, int]) -> PacketPath:
    """The path of a new connection from the pod to the world."""
    from istio_init.cli.verbs.subject import ELSEWHERE

    away = ELSEWHERE[family]
    packet = Packet("OUTPUT", TCP, about.facts.source(away), away, CLIENT_PORT, WORLD_PORT, uid=ids[0], gid=ids[1])
    return follow(about.ruleset(family), routed(packet, about.facts).packet, about.facts, about.envoy)


def _received(about: Subject, family: Family) -> PacketPath:
    """The path of a new connection from the world to the pod."""
    from istio_init.cli.verbs.subject import ELSEWHERE, POD

    facts, away = about.facts, ELSEWHERE[family]
    own = facts.primary(facts.uplink, away) or POD[family].address
    packet = Packet("PREROUTING", TCP, away, own, CLIENT_PORT, APP_PORT, in_interface=facts.uplink)
    return follow(about.ruleset(family), packet, facts, about.envoy)
