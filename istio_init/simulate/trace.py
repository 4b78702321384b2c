"""One packet's path through one netfilter hook, rule by rule, as in the kernel. Pure; path.py joins the hooks.

It models the following, with the place in the kernel (net/ipv4/netfilter, net/netfilter); semantics.py has the
matches and targets:

- ipt_do_table: the first verdict decides, a jump remembers where it came from, a goto does not, RETURN in a
  built-in chain is its policy.
- The order of tables at a hook (enum nf_ip_hook_priorities), with connection tracking after raw.
- nat sees only the first packet of a connection, once for its destination (PREROUTING or OUTPUT) and once
  for its source (INPUT or POSTROUTING): nf_nat_inet_fn. Not again for a packet that returns over lo.

A match or target that is not modelled ends the trace as UNDECIDED, unless another match of the same rule fails, or the
packet comes to the same end whether the rule matches or not.
"""

from __future__ import annotations

from istio_init.errors import InitError, shown
from istio_init.model.foreign import HookedTable
from istio_init.model.packet import UNCONNECTED
from istio_init.model.rules import Chain, Jump
from istio_init.simulate.semantics import act, after_matching, matches
from istio_init.simulate.trace_steps import ChainEnd, RuleStep, SkippedTable, Trace, passes_on
from istio_init.simulate.unclear import either_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Hashable
    from typing import Literal, TypeAlias

    from istio_init.model.packet import Facts, Packet, Side
    from istio_init.model.rules import Hook, Ruleset, Table, TableName, Target

    HookVerdict: TypeAlias = Literal["ACCEPT", "DROP", "QUEUE", "UNDECIDED"]

# The tables of each hook by priority; connection tracking comes after raw.
HOOKS: dict[Hook, tuple[TableName, ...]] = {
    "PREROUTING": ("raw", "mangle", "nat"),
    "INPUT": ("mangle", "filter", "security", "nat"),
    "FORWARD": ("mangle", "filter", "security"),
    "OUTPUT": ("raw", "mangle", "nat", "filter", "security"),
    "POSTROUTING": ("mangle", "nat"),
}

PRIORITIES = {"raw": -300, "mangle": -150, "nat": -100, "filter": 0, "security": 50, "source nat": 100}

# The address that nat translates at each hook.
NAT_SIDES: dict[Hook, Side] = {
    "PREROUTING": "destination",
    "OUTPUT": "destination",
    "INPUT": "source",
    "POSTROUTING": "source",
}

# States of a connection's first packet, to which nat's rules apply.
FIRST = frozenset({"NEW", "RELATED"})
ICMP = frozenset({1, 58})
# Of so many rules in a table at one hook that may or may not match, both ways are followed.
MOST_FORKS, DEEPEST = 1000, 150


def trace(ruleset: Ruleset, packet: Packet, facts: Facts) -> Trace:
    """The packet's path through all tables of its hook. The ruleset is of the packet's family."""
    steps: list[RuleStep | ChainEnd | SkippedTable] = []
    before = packet
    outcome: HookVerdict = "ACCEPT"
    for name, table in tables_at(ruleset, packet.hook, facts):
        why = _not_translated(packet) if name == "nat" else ""
        if why and table.name == name:
            packet = _translate_later(table, packet, facts)
        elif name == "nat" and not why and _ends(packet) != _ends(before):
            why = "another table has translated the connection"
        if why:
            steps.append(SkippedTable(table.name, why))
            continue
        packet, outcome = _Walk(table, packet, facts, steps).run()
        if outcome != "ACCEPT":
            return Trace(before, tuple(steps), _after_hook(packet), outcome)
    return Trace(before, tuple(steps), _after_hook(packet), outcome)


def tables_at(ruleset: Ruleset, hook: Hook, facts: Facts) -> list[tuple[str, Table]]:
    """The tables that a packet meets at a hook, in their order, each with the table of iptables that it is like.

    Those of other backends are called such as `nat (nft)`, those of other programs are HookedTables. The kernel calls
    base chains of one priority in the reverse of the order in which they were made, which no listing shows: other
    programs' come first here, or, with Facts.others_last, last.
    """
    tables: list[tuple[int, bool, str, Table]] = []  # priority, another program's or backend's, kind, table
    for table in ruleset.tables:
        if isinstance(table, HookedTable):
            if table.hook == hook:
                tables.append((table.priority, True, table.kind, table))
            continue
        name = table.name.partition(" ")[0]
        if name in HOOKS[hook]:
            tables.append((_priority(name, hook), table.name != name, name, table))
    tables.sort(key=lambda each: (each[0], each[1] == facts.others_last))
    return [(name, table) for _, _, name, table in tables]


def _priority(table: str, hook: Hook) -> int:
    """The priority of a table of iptables (enum nf_ip_hook_priorities)."""
    return PRIORITIES["source nat" if table == "nat" and NAT_SIDES[hook] == "source" else table]


def ties(ruleset: Ruleset, hook: Hook, facts: Facts) -> list[tuple[str, str]]:
    """The pairs of tables at a hook whose order no listing shows."""
    places: dict[int, list[str]] = {}
    for name, table in tables_at(ruleset, hook, facts):
        priority = table.priority if isinstance(table, HookedTable) else _priority(name, hook)
        chain = table.chain(hook)
        if chain is not None and (chain.rules or chain.policy == "DROP"):
            places.setdefault(priority, []).append(table.name)
    return [(each[0], each[1]) for each in places.values() if len(each) > 1]


def _ends(packet: Packet) -> tuple[object, ...]:
    return packet.source, packet.source_port, packet.destination, packet.destination_port


def _after_hook(packet: Packet) -> Packet:
    """The packet after its hook: tracked, with its connection's translation decided for that hook's side."""
    side = NAT_SIDES.get(packet.hook)
    if packet.ctstate in UNCONNECTED or side is None:
        return packet
    translated = packet.translated if side in packet.translated else (*packet.translated, side)
    return packet.replace(tracked=True, zone=packet.zone or 0, translated=translated)


def _not_translated(packet: Packet) -> str:
    """Why nat skips this packet; empty if it does not."""
    if packet.ctstate in UNCONNECTED:
        return f"the packet is {packet.ctstate}, it belongs to no connection that could be translated"
    if packet.ctstate not in FIRST:
        return f"the connection is {packet.ctstate}, it keeps the translation that its first packet was given"
    if packet.ctstate == "RELATED" and packet.protocol in ICMP:
        return "an error message is translated as the connection that it is about"
    if NAT_SIDES[packet.hook] in packet.translated:
        return "the connection's translation was decided when it was sent"
    return ""


def _translate_later(nat: Table, packet: Packet, facts: Facts) -> Packet:
    """A later packet of a connection, with the translation that its first packet gets from the same rules."""
    side = NAT_SIDES[packet.hook]
    if packet.ctstate in UNCONNECTED | FIRST or side in packet.translated:
        return packet
    if packet.reply:
        # The first packet's destination is a reply's source, and is translated back on that side.
        if side == "destination" or packet.called is None:
            return packet
        address, port = packet.called
        return packet.replace(source=address, source_port=port)
    first, _ = _Walk(nat, packet.replace(ctstate="NEW"), facts, []).run()
    return first.replace(ctstate=packet.ctstate)


class _Walk:
    """A packet's path through one table."""

    def __init__(
        self, table: Table, packet: Packet, facts: Facts, steps: list[RuleStep | ChainEnd | SkippedTable]
    ) -> None:
        self._table, self._packet, self._facts, self._steps = table, packet, facts, steps
        self._base = table.chain(packet.hook) or Chain(packet.hook, (), "ACCEPT")
        # The return addresses of jumps: the chain, the position, and the jump that led to that chain.
        self._stack: list[tuple[Chain, int, RuleStep | None]] = []
        # How many rules may still be followed both ways.
        self._forks, self._depth = MOST_FORKS, 0
        # By place, way back and packet, what comes of it.
        self._results: dict[Hashable, tuple[Packet, HookVerdict]] = {}

    def run(self) -> tuple[Packet, HookVerdict]:
        """The packet after the table, and the verdict."""
        return self._run(self._base, 0, None)

    def _run(self, chain: Chain, at: int, via: RuleStep | None) -> tuple[Packet, HookVerdict]:
        """The same from a rule on."""
        while True:
            if at == len(chain.rules):
                if not self._stack:
                    return self._policy(chain, via)
                back, following, before = self._stack.pop()
                self._steps.append(ChainEnd(self._table.name, chain.name, back.name, depth=via.depth + 1 if via else 0))
                chain, at, via = back, following, before
                continue
            step, answer = self._meet(chain, at, via)
            at += 1
            target = step.rule.target
            if answer == "JUMP" and isinstance(target, Jump):
                if not target.goto:
                    self._stack.append((chain, at, via))
                chain, at, via = self._chain(target.chain), 0, step
            elif answer == "RETURN":
                if not self._stack:
                    return self._policy(chain, via)
                chain, at, via = self._stack.pop()
            elif answer == "UNDECIDED" and step.failed is not None and self._forks and self._depth < DEEPEST:
                return self._both_ways(chain, at, via, step)
            elif answer != "CONTINUE":
                return self._packet, answer  # type: ignore[return-value] # the other answers are verdicts

    def _both_ways(self, chain: Chain, at: int, via: RuleStep | None, step: RuleStep) -> tuple[Packet, HookVerdict]:
        """What follows a rule that may or may not match, if both come to the same; else UNDECIDED."""
        self._forks, self._depth = self._forks - 1, self._depth + 1
        stack, packet, place = list(self._stack), self._packet, len(self._steps)
        self._steps[place - 1] = step.replace(answer="CONTINUE")
        # First without the rule: what follows is then known for the ways that lead back to it.
        key = self._key(chain, at)
        other = self._results[key] = self._run(chain, at, via)
        end = len(self._steps)
        self._stack, self._packet = stack, packet
        matching = self._matching(chain, at, via, step)
        del self._steps[end:]
        self._depth -= 1
        if matching is not None and matching[1] == other[1]:
            # Of a packet that is dropped nothing else counts.
            both = other[0] if other[1] == "DROP" else either_of(other[0], matching[0], "a rule that may match")
            if both is not None and other[1] != "UNDECIDED":
                return both, other[1]
        self._steps[place - 1 :] = [step]
        return packet, "UNDECIDED"

    def _matching(
        self, chain: Chain, at: int, via: RuleStep | None, step: RuleStep
    ) -> tuple[Packet, HookVerdict] | None:
        """What comes of the packet if a rule matches; None if that is not known."""
        self._packet, answer = act(step.rule.target, self._packet, self._facts)
        target = step.rule.target
        if answer == "JUMP" and isinstance(target, Jump):
            if not target.goto:
                self._stack.append((chain, at, via))
            return self._rest(self._chain(target.chain), 0, step)
        if answer == "RETURN":
            if not self._stack:
                return self._policy(chain, via)
            return self._rest(*self._stack.pop())
        if answer == "CONTINUE":
            return self._rest(chain, at, via)
        return None if answer == "UNDECIDED" else (self._packet, answer)  # type: ignore[return-value]

    def _rest(self, chain: Chain, at: int, via: RuleStep | None) -> tuple[Packet, HookVerdict]:
        """What _run returns, looked up where another way led to the same place."""
        key = self._key(chain, at)
        if key not in self._results:
            self._results[key] = self._run(chain, at, via)
        return self._results[key]

    def _key(self, chain: Chain, at: int) -> Hashable:
        return chain.name, at, tuple((back.name, following) for back, following, _ in self._stack), self._packet

    def _chain(self, name: str) -> Chain:
        chain = self._table.chain(name)
        if chain is None:
            raise InitError(f"table {self._table.name}: a rule jumps to chain {shown(name)}, which does not exist")
        return chain

    def _policy(self, chain: Chain, via: RuleStep | None) -> tuple[Packet, HookVerdict]:
        policy: HookVerdict = "DROP" if self._base.policy == "DROP" else "ACCEPT"
        depth = via.depth + 1 if via else 0
        self._steps.append(ChainEnd(self._table.name, chain.name, "", policy, depth))
        return self._packet, policy

    def _meet(self, chain: Chain, at: int, via: RuleStep | None) -> tuple[RuleStep, str]:
        """Apply one rule; returns its step and the next action: an Answer, JUMP or RETURN."""
        rule, before = chain.rules[at], self._packet
        matched, failed = matches(rule.matches, before, self._facts)
        answer: str = "CONTINUE"
        before = self._packet = after_matching(rule.matches, before) if matched is not False else before
        if matched is None:
            answer = self._perhaps(rule.target)
        elif matched:
            self._packet, answer = act(rule.target, before, self._facts)
            if answer == "UNDECIDED":
                matched = None
        step = RuleStep(self._table.name, chain.name, at + 1, rule, matched, before, self._packet, failed, via, answer)
        self._steps.append(step)
        return step, answer

    def _perhaps(self, target: Target) -> str:
        """Apply a target of a rule that may or may not match; CONTINUE if the packet is followed with both results."""
        if passes_on(target):
            return "CONTINUE"
        if isinstance(target, Jump):
            return "UNDECIDED"
        after, answer = act(target, self._packet, self._facts)
        both = either_of(self._packet, after, "a rule that may match") if answer == "CONTINUE" else None
        if both is None:
            return "UNDECIDED"
        self._packet = both
        return "CONTINUE"
