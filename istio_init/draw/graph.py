"""A ruleset as boxes and links, without positions, which layout.py assigns. Pure.

A box is a chain; its rows are the rules, and a last row for packets that no rule decides about. A link leads from a
row to the box that it jumps to, or to an end: a listener of the proxy, a drop, or an uncaptured packet.
"""

from __future__ import annotations

from istio_init.errors import printable
from istio_init.formats.phrases import matches_words, target_words
from istio_init.model.extensions import Tproxy
from istio_init.model.rules import Jump, Redirect, Verdict, jumps
from istio_init.model.unknown import Comment
from istio_init.planning.capture import AGENT_DNS_PORT
from istio_init.record import Record
from istio_init.simulate.purposes import purpose
from istio_init.simulate.trace import HOOKS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from istio_init.model.rules import Chain, Family, Hook, Rule, Ruleset, Table, TableName
    from istio_init.simulate.path import Proxy
    from istio_init.simulate.purposes import Purpose, RuleLocation

ALONE: dict[Hook, str] = {
    "PREROUTING": "on to the pod",
    "INPUT": "on to the pod",
    "FORWARD": "on through the pod",
    "OUTPUT": "on to where it was going",
    "POSTROUTING": "on to where it was going",
}


class GraphRow(Record):
    """A rule, with `number` from 1, or the end of a chain, with number 0 and no rule.

    `condition` and `action` are texts; `to` is the key of the box or end that the row leads to, empty if the packet
    continues with the next row or may return to several chains. `why` is the rule's purpose, if it has one.
    """

    key: str
    number: int
    condition: str
    action: str
    to: str = ""
    rule: Rule | None = None
    why: Purpose | None = None

    @property
    def nine(self) -> str:
        """The rule's number in the article (docs/explain.md), 1 to 9, or empty."""
        return self.why.number if self.why else ""


class Box(Record):
    """A chain of a table, drawn below the first hook that leads to it, if any."""

    key: str
    table: TableName
    name: str
    hook: Hook | None
    rows: tuple[GraphRow, ...]


class End(Record):
    """Where a packet leaves the rules: the hook that it is drawn below, its title and its text."""

    key: str
    kind: str
    hook: Hook | None
    title: str
    text: str


class Graph(Record):
    """All boxes, by table and with callers first, and the ends that rows lead to."""

    family: Family
    boxes: tuple[Box, ...]
    ends: tuple[End, ...]

    @property
    def links(self) -> dict[str, str]:
        """The keys of the boxes and ends that rows lead to, by the rows' keys."""
        return {row.key: row.to for box in self.boxes for row in box.rows if row.to}


def build_graph(ruleset: Ruleset, reasons: Mapping[RuleLocation, Purpose], envoy: Proxy) -> Graph:
    """The graph of one family's rules; `reasons` are the known purposes of rules."""
    boxes: list[Box] = []
    ends: dict[str, End] = {}
    for table in ruleset.tables:
        boxes += _Sketch(table, reasons, envoy, ends).boxes()
    used = {row.to for box in boxes for row in box.rows}
    order = {kind: at for at, kind in enumerate(("inbound", "outbound", "dns", "port", "queued", "dropped", "alone"))}
    shown = sorted((end for end in ends.values() if end.key in used), key=lambda end: order[end.kind])
    return Graph(ruleset.family, tuple(boxes), tuple(shown))


def row_key(table: str, chain: str, number: int) -> str:
    """A row's key: its table, its chain, and its rule's number, or 0 for the chain's end."""
    return f"{table}/{chain}/{number}"


class _Sketch:
    """The boxes of one table. The kernel rejects tables with circular jumps."""

    def __init__(
        self, table: Table, reasons: Mapping[RuleLocation, Purpose], envoy: Proxy, ends: dict[str, End]
    ) -> None:
        self._table, self._reasons, self._envoy, self._ends = table, reasons, envoy, ends
        self._chains = {chain.name: chain for chain in table.chains}
        self._hooks: dict[str, list[Hook]] = {chain.name: [] for chain in table.chains}
        self._order: list[Chain] = []
        for hook, tables in HOOKS.items():
            if table.name in tables and hook in self._chains:
                self._reach(self._chains[hook], hook)
        # Callers first, also among the chains that nothing leads to.
        visited: set[str] = set()
        for chain in reversed(table.chains):
            self._sort(chain, visited)
        self._order.reverse()

    def boxes(self) -> Iterator[Box]:
        """The chains that have rules, callers first."""
        for chain in self._order:
            if chain.rules or chain.policy not in {None, "ACCEPT"} or (chain.policy is None and self._called(chain)):
                rows = tuple(self._rows(chain))
                yield Box(f"{self._table.name}/{chain.name}", self._table.name, chain.name, self._column(chain), rows)

    def _called(self, chain: Chain) -> bool:
        return any(chain.name in jumps(each) for each in self._table.chains)

    def _reach(self, chain: Chain, hook: Hook) -> None:
        if hook not in self._hooks[chain.name]:
            self._hooks[chain.name].append(hook)
            for name in jumps(chain):
                self._reach(self._chains[name], hook)

    def _sort(self, chain: Chain, visited: set[str]) -> None:
        if chain.name not in visited:
            visited.add(chain.name)
            for name in reversed(list(jumps(chain))):
                self._sort(self._chains[name], visited)
            self._order.append(chain)

    def _rows(self, chain: Chain) -> Iterator[GraphRow]:
        for number, rule in enumerate(chain.rules, 1):
            key = row_key(self._table.name, chain.name, number)
            why = purpose(self._reasons, self._table.name, chain.name, rule)
            # --rule-comments: the purpose is shown as such.
            matches = [each for each in rule.matches if not (why and each == Comment(why.text))]
            condition, action = matches_words(matches), target_words(rule.target)
            yield GraphRow(key, number, condition, action, self._leads(chain, rule), rule, why)
        if not (chain.rules and _is_final(chain.rules[-1])):
            action = f"{chain.policy} (policy)" if chain.policy else "RETURN"
            to = self._alone(self._after(chain, frozenset()))
            yield GraphRow(row_key(self._table.name, chain.name, 0), 0, "otherwise", action, to)

    def _leads(self, chain: Chain, rule: Rule) -> str:
        """The key of the box or end that a rule leads to."""
        match rule.target:
            case Jump(name):
                return f"{self._table.name}/{name}"
            case Redirect(ports):
                return self._listener(chain, ports.low) if ports.low == ports.high else ""
            case Tproxy(port):
                return self._listener(chain, port) if port else ""
            case Verdict("RETURN"):
                return self._alone(self._after(chain, frozenset()))
            case Verdict("ACCEPT"):
                return self._alone({(hook, "ACCEPT") for hook in self._hooks[chain.name]})
            case Verdict("DROP" | "QUEUE" as name):
                return self._alone({(self._column(chain), name)})
            case _:
                return ""

    def _column(self, chain: Chain) -> Hook | None:
        return next(iter(self._hooks[chain.name]), None)

    def _after(self, chain: Chain, visited: frozenset[str]) -> set[tuple[Hook | None, str]]:
        """The hooks and verdicts of packets that reach the end of a chain; an empty verdict if they continue."""
        if chain.policy is not None:
            hook: Hook = chain.name  # type: ignore[assignment] # a built-in chain is named as its hook
            return {(hook, chain.policy)}
        outcomes: set[tuple[Hook | None, str]] = set()
        for caller in self._table.chains:
            for at, rule in enumerate(caller.rules):
                if isinstance(rule.target, Jump) and rule.target.chain == chain.name and caller.name not in visited:
                    goes_on = at + 1 < len(caller.rules) and not rule.target.goto
                    outcomes |= {(None, "")} if goes_on else self._after(caller, visited | {chain.name})
        return outcomes

    def _alone(self, verdicts: set[tuple[Hook | None, str]]) -> str:
        """The key of the common end of these verdicts, if there is exactly one."""
        if len(verdicts) != 1:
            return ""
        ((hook, verdict),) = verdicts
        if verdict == "DROP":
            return self._end(End("end/dropped", "dropped", hook, "Dropped", "by a rule or policy"))
        if verdict == "QUEUE":
            return self._end(End("end/queued", "queued", hook, "NFQUEUE", "a program decides"))
        if not hook or not verdict:
            return ""
        return self._end(End(f"end/alone/{hook}", "alone", hook, "Left alone", ALONE[hook]))

    def _listener(self, chain: Chain, port: int) -> str:
        hook = self._column(chain)
        listeners = {
            AGENT_DNS_PORT: ("dns", "The agent's DNS", f"port {port}"),
            self._envoy.outbound_port: ("outbound", "Envoy, outbound", f"port {port}"),
            self._envoy.inbound_port: ("inbound", "Envoy, inbound", f"port {port}"),
        }
        kind, title, text = listeners.get(port, ("port", f"Port {port}", "of the pod itself"))
        return self._end(End(f"end/{kind}" + (f"/{port}" if kind == "port" else ""), kind, hook, title, text))

    def _end(self, end: End) -> str:
        existing = self._ends.setdefault(end.key, end)
        if existing.hook is None:
            self._ends[end.key] = end
        return end.key


def _is_final(rule: Rule) -> bool:
    """Whether no packet continues after a rule."""
    final = isinstance(rule.target, Redirect | Tproxy) or (
        (isinstance(rule.target, Jump) and rule.target.goto)
        or (isinstance(rule.target, Verdict) and rule.target.name != "")
    )
    return final and all(isinstance(match, Comment) for match in rule.matches)


def title_of(box: Box) -> str:
    """A box's title, escaped: the name of a chain in the kernel may contain any character."""
    return printable(box.name)
