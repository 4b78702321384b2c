"""Where Istio's rules are among other programs' rules, after an edit and after it is undone. Not on the hot path."""

from __future__ import annotations

from istio_init.model.alignment import aligned
from istio_init.model.ownership import chain_of, edit, own_rules, recognised
from istio_init.model.rules import OWN_CHAINS, Table, ordered

TYPE_CHECKING = False
if TYPE_CHECKING:
    from istio_init.model.rules import Chain, Rule


def places(current: Chain, desired: Chain, like: Chain) -> tuple[int, ...]:
    """For each desired rule, how many of the other programs' rules in `current` precede it, as they did in `like`.

    Where other programs wrote in between, a rule stays behind the nearest earlier neighbour that still exists.
    """
    own = own_rules(like)
    counts = _counts(_others(like), _others(current))
    result: list[int] = []
    number = 0
    for rule in desired.rules:
        at = next((each for each in range(number, len(own)) if like.rules[own[each]] == rule), None)
        if at is None:
            result.append(result[-1] if result else counts[own[0]] if own else counts[-1])
        else:
            # `at` of the rules before this one are Istio's, the rest are other programs'.
            result.append(counts[own[at] - at])
            number = at + 1
    return tuple(result)


def _others(chain: Chain) -> list[Rule]:
    own = set(own_rules(chain))
    return [rule for at, rule in enumerate(chain.rules) if at not in own]


def _counts(then: list[Rule], now: list[Rule]) -> list[int]:
    """By the number of rules that preceded a place then, the number that precede it now."""
    if then == now:
        return list(range(len(then) + 1))
    counts, position = [0], 0
    for sign, _ in aligned(then, now):
        if sign == "+":
            position += 1
        elif sign == " ":
            position += 1
            counts.append(position)
        else:
            counts.append(counts[-1])
    if not any(counts):
        return [len(now)] * len(counts)  # nothing that was there remains: as iptables appends
    return counts


def merged(current: Table, desired: Table | None, planned: Table | None = None, like: Table | None = None) -> Table:
    """The table after Istio's rules are brought to the plan (or, with None, removed), as a Firewall writes it."""
    recognised_table = recognised(current, desired or planned)
    earlier = recognised(like, desired or planned) if like else None
    chains = {chain.name: chain for chain in recognised_table.chains if chain.name not in OWN_CHAINS}
    targets = {chain.name: chain for chain in desired.chains} if desired else {}
    for name, chain in chains.items():
        change = edit(chain, targets.get(name), chain_of(earlier, name))
        deleted = frozenset(change.delete)
        rules = [rule for number, rule in enumerate(chain.rules) if number not in deleted]
        for number, (rule, count) in enumerate(zip((*change.top, *change.block), change.preceding(), strict=True)):
            rules.insert(number + count, rule)
        chains[name] = chain.replace(rules=tuple(rules))
    for name, chain in targets.items():
        chains.setdefault(name, chain)
    return Table(current.name, ordered(current.name, chains))
