"""The steps of a packet's walk through the rules of one hook, as values."""

from __future__ import annotations

from istio_init.model.extensions import CtZone, RestoreMark, SaveMark, SetMark, Tproxy
from istio_init.model.foreign import AnyMark, ChangeSets, Fixed, MapPrefix, NoTrack, SetConnMark
from istio_init.model.rules import Redirect, Verdict
from istio_init.model.unknown import UnknownTarget
from istio_init.record import Record
from istio_init.simulate.foreign_targets import effect_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal, TypeAlias

    from istio_init.model.packet import Packet
    from istio_init.model.rules import Hook, Rule, TableName, Target
    from istio_init.simulate.foreign import Part

    HookVerdict: TypeAlias = Literal["ACCEPT", "DROP", "QUEUE", "UNDECIDED"]


class RuleStep(Record):
    """One rule that the packet reached: `number` from 1; `matched` is None if this can't be decided.

    `failed` is the match that did not hold or can't be decided. `after` is the packet after the rule, `via` the jump
    that led to this chain. `answer` is the next action: an Outcome, CONTINUE, JUMP or RETURN.
    """

    table: TableName
    chain: str
    number: int
    rule: Rule
    matched: bool | None
    before: Packet
    after: Packet
    failed: Part | None = None
    via: RuleStep | None = None
    answer: str = ""

    @property
    def drops(self) -> bool:
        """Whether the packet ended here."""
        return self.matched is True and self.answer in {"DROP", "QUEUE"}

    @property
    def ends(self) -> bool:
        """Whether the packet ended here, or can't be followed further."""
        return self.drops or (self.matched is None and self.answer == "UNDECIDED")

    @property
    def depth(self) -> int:
        """How many jumps lead to this chain."""
        return 0 if self.via is None else self.via.depth + 1


class ChainEnd(Record):
    """The end of a chain, reached without a verdict: back to the chain `to`, or the policy if that is empty."""

    table: TableName
    chain: str
    to: str
    policy: str = ""
    depth: int = 0


class SkippedTable(Record):
    """A table that the packet skipped, and why."""

    table: TableName
    why: str


class Trace(Record):
    """A packet's path through one hook: its state before, the rules it reached, its state after, and the verdict."""

    before: Packet
    steps: tuple[RuleStep | ChainEnd | SkippedTable, ...]
    packet: Packet
    outcome: HookVerdict

    @property
    def hook(self) -> Hook:
        """The hook."""
        hook: Hook = self.before.hook
        return hook

    @property
    def rules(self) -> tuple[RuleStep, ...]:
        """The rules, without chain ends and skipped tables."""
        return tuple(step for step in self.steps if isinstance(step, RuleStep))

    @property
    def decisive(self) -> RuleStep | None:
        """The rule that decided: the last one with a verdict, else the last one that returned the packet."""
        reached = [step for step in self.rules if step.matched is not False]
        if self.outcome != "ACCEPT" and (ending := next((step for step in reached if step.ends), None)):
            # A later table may refuse what an earlier one redirected.
            return ending
        last = None
        sure = True
        for step in reached:
            target = step.rule.target
            # Behind a rule that may or may not match the next ones are on one of two ways to the same end.
            sure = sure and (step.matched is True or continues(target))
            changed = step.answer == "ACCEPT" and step.after != step.before
            if isinstance(target, Redirect | Tproxy) or (sure and changed):
                return step
            if sure and step.matched and step.answer in {"RETURN", "ACCEPT"}:
                last = step
        return last


def passes_on(target: Target) -> bool:
    """Whether the packet continues unchanged with the next rule, whether or not this one matches."""
    if isinstance(target, UnknownTarget):
        effect = effect_of(target)
        return isinstance(effect, Fixed) and effect.answer == "CONTINUE"
    return isinstance(target, Verdict) and not target.name


def continues(target: Target) -> bool:
    """Whether the packet continues with the next rule, changed or not."""
    if isinstance(target, UnknownTarget):
        effect = effect_of(target)
        return isinstance(effect, SetConnMark | AnyMark | ChangeSets | NoTrack | MapPrefix) or passes_on(target)
    return isinstance(target, SetMark | SaveMark | RestoreMark | CtZone) or passes_on(target)
