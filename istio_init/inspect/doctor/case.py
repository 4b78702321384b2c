"""The doctor's values: the facts of a case, and the result of each check."""

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
    """The result of one check: its name, status, finding, why it matters and for which flag, and the remedy.

    `fail` means that applying fails, or the applied rules would not work. Passed checks of one `group` are shown as
    one line.
    """

    name: str
    status: Severity
    finding: str
    matters: str = ""
    remedy: str = ""
    group: str = ""


class Case(Record):
    """The options as given (`requested`) and with defaults resolved, their plan, and facts about the machine.

    `backend` is the one that an apply would write to, empty if it can't be determined, and `why` the reason. `runs_as`
    is the proxy's uid and gid, `proxy_user` the name that its uid is looked up by. `privileges` are
    those of the container that makes the rules, by the pod's manifest; None where no manifest says.
    """

    requested: Options
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
