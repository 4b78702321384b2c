"""What a doctor works with: a case to look at, and what came of each look."""

from __future__ import annotations

from typing import TYPE_CHECKING

from istio_init.planning.capture import uses_tproxy
from istio_init.record import Record

if TYPE_CHECKING:
    from typing import Literal, TypeAlias

    from istio_init.inspect.socket_capture import NodeSupport
    from istio_init.kernel.probe.facts import Machine
    from istio_init.model.rules import Family
    from istio_init.options.privileges import Privileges
    from istio_init.options.table import Options
    from istio_init.planning.plan import Plan

    Severity: TypeAlias = Literal["ok", "warn", "fail"]


class Check(Record):
    """One look: what at, how it is, what was found, what that means and for which flag, and what to do.

    `fail` is where an apply with these options does not work. `group` is what checks have in common that are shown
    as one as long as all is well.
    """

    name: str
    status: Severity
    finding: str
    matters: str = ""
    remedy: str = ""
    group: str = ""


class Case(Record):
    """Options as they were given and as they are settled, their plan, and what there is to know of the machine.

    `backend` is the one that an apply would write to and `why` it would, the backend empty where that can't be
    told. `runs_as` is the proxy's uid and gid, `proxy_user` the name that its uid is looked up by. `privileges` are
    those of the container that makes the rules, by the pod's manifest; None where no manifest says.
    """

    asked: Options
    options: Options
    plan: Plan
    machine: Machine
    backend: str
    why: str
    runs_as: tuple[int, int]
    proxy_user: str = "istio-proxy"
    node: NodeSupport | None = None
    privileges: Privileges | None = None

    @property
    def families(self) -> tuple[Family, ...]:
        """The families that the plan is for."""
        return tuple(ruleset.family for ruleset in self.plan.rulesets)

    @property
    def tproxy(self) -> bool:
        """Whether inbound traffic is captured with TPROXY."""
        return uses_tproxy(self.options) and bool(self.options.istio_inbound_ports)
