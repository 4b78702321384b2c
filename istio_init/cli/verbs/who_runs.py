"""The users that run a pod's applications and proxy, from its manifest or /proc, and faults that follow from them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from istio_init.cli.pod_owners import pod_owners
from istio_init.cli.verbs.packet_flags import APPLICATION_ID
from istio_init.errors import printable
from istio_init.kernel.host import containers, processes
from istio_init.model.packet import Packet
from istio_init.model.rules import TCP
from istio_init.options.cni_pod import PROXY_CONTAINER
from istio_init.options.owners import matches_proxy
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
APP_PORT, WORLD_PORT, CLIENT_PORT = 8080, 443, 40000


class Residents(Record):
    """A pod's applications and proxy, as far as their ids are known; the application that a flag names comes first."""

    applications: tuple[RunsAs, ...] = ()
    proxy: RunsAs | None = None


def residents(where: Where) -> Residents:
    """The residents of the pod that the flags name by a process, a container or a manifest; none without a pod."""
    if where.pid is not None or where.container is not None:
        return _processes(where)
    owners = [each for each in pod_owners.get() if each.uid is not None or each.gid is not None]
    applications = tuple(each for each in owners if not each.init and each.container != PROXY_CONTAINER)
    return Residents(applications, next((each for each in owners if each.container == PROXY_CONTAINER), None))


def _processes(where: Where) -> Residents:
    pid = containers.pid_of(where.container) if where.container is not None else where.pid
    running = processes.sharing_network(pid) if pid is not None else ()
    # The named process comes first. Processes with the same name and ids count once.
    by_ids: dict[tuple[str, int, int], RunsAs] = {}
    for each in sorted(running, key=lambda process: process.pid != pid):
        title = f"{printable(each.name)} (process {each.pid})"
        by_ids.setdefault((each.name, each.uid, each.gid), RunsAs(title, init=False, uid=each.uid, gid=each.gid))
    proxies = [owner for (name, _, _), owner in by_ids.items() if name in PROXIES]
    applications = tuple(owner for (name, _, _), owner in by_ids.items() if name not in PROXIES)
    return Residents(applications, next(iter(proxies), None))


def with_proxy(about: Subject, who: Residents) -> Subject:
    """The subject with the proxy's actual ids."""
    if who.proxy is None:
        return about
    envoy = about.envoy
    uid = envoy.uid if who.proxy.uid is None else who.proxy.uid
    return about.replace(envoy=envoy.replace(uid=uid, gid=envoy.gid if who.proxy.gid is None else who.proxy.gid))


def sender(who: Residents) -> tuple[int, int]:
    """The default sender's ids: the first application's with a known user. Its group is root's if unknown."""
    app = next((each for each in who.applications if each.uid is not None), None)
    if app is None or app.uid is None:
        return APPLICATION_ID, APPLICATION_ID
    return app.uid, 0 if app.gid is None else app.gid


def faults(about: Subject, who: Residents) -> Iterator[Fault]:
    """Faults of misidentified senders: an application that the rules match as the proxy, or the reverse."""
    for family in (ruleset.family for ruleset in about.rulesets):
        usual = _sent(about, family, (APPLICATION_ID, APPLICATION_ID))
        for app in who.applications:
            ids = sender(Residents((app,)))
            # Other ids may be excluded on purpose, such as by --istio-outbound-owner-groups-exclude.
            if not matches_proxy(about.options, *ids):
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
