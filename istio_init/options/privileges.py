"""What a container's securityContext lets it do to its network namespace, as far as a manifest says. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from istio_init.options.podspec import account, boolean, entries, mapping
from istio_init.record import Record

if TYPE_CHECKING:
    from istio_init.options.podspec import Container
    from istio_init.options.workload import Workload

NEEDED = ("NET_ADMIN", "NET_RAW")
# Of those, what container runtimes give to every container (containerd, CRI-O before 1.18 and Docker: NET_RAW).
USUAL = frozenset({"NET_RAW"})
ALL = "ALL"


class Privileges(Record):
    """The container that makes a pod's rules. `lacking` has for each capability that it lacks the reason.

    `user` is the uid that it runs as, None where the image decides; `root_refused` is runAsNonRoot.
    """

    container: str
    lacking: dict[str, str]
    user: int | None
    root_refused: bool = False


def privileges(container: Container, workload: Workload) -> Privileges:
    """What the securityContext of a container, and of its pod, grants. ValueError where a field is of another type."""
    context = mapping(container.body.get("securityContext"), f"{container.title}: securityContext")
    whole = mapping(workload.spec.get("securityContext"), "securityContext")
    named = mapping(context.get("capabilities"), f"{container.title}: capabilities")
    place = f"{container.title}: capabilities: "
    added, dropped = (frozenset(_name(each) for each in entries(named, key, place)) for key in ("add", "drop"))
    user = container.account("runAsUser")
    own_refusal = boolean(context, "runAsNonRoot", f"{container.title}: securityContext: ")
    refusal = boolean(whole, "runAsNonRoot", "securityContext: ") if own_refusal is None else own_refusal
    return Privileges(
        container.title,
        {}
        if boolean(context, "privileged", f"{container.title}: securityContext: ")
        else {name: why for name in NEEDED if (why := _why(name, added, dropped))},
        account(workload.spec, "runAsUser") if user is None else user,
        refusal is True,
    )


def _name(entry: object) -> str:
    """A capability as Linux names it: Kubernetes leaves out CAP_, and runtimes ignore case."""
    return str(entry).upper().removeprefix("CAP_")


def _why(name: str, added: frozenset[str], dropped: frozenset[str]) -> str:
    """Why a capability is lacking, empty where it is held.

    Runtimes take ALL of `add`, then ALL of `drop`, then the names of `add`, then those of `drop` (containerd's
    WithCapabilities), so a name that is in both lists is dropped.
    """
    if name in dropped:
        return "it is in capabilities.drop, which wins over capabilities.add" if name in added else "capabilities.drop"
    if name in added or (ALL in added and ALL not in dropped):
        return ""
    if ALL in dropped:
        return "capabilities.drop has ALL, and capabilities.add does not have it"
    return "" if name in USUAL else "capabilities.add does not have it"
