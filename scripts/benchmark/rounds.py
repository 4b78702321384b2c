"""Contenders by turns: every round runs each of them once, in an order of its own."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from .processes import Failed, Measured

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from .processes import Contender, Laboratory

WEIGHINGS = 3


def able(
    laboratory: Laboratory, contenders: Iterable[Contender], progress: Callable[[str], None]
) -> tuple[list[Contender], dict[str, str]]:
    """Those that can do their job on this machine, each tried once; and what the others say."""
    able_contenders, failures = [], {}
    for contender in contenders:
        progress(f"is able: {contender.name}")
        try:
            laboratory.run(contender)
        except Failed as failure:
            failures[contender.name] = str(failure)
        else:
            able_contenders.append(contender)
    laboratory.forget()
    return able_contenders, failures


def interleave(
    laboratory: Laboratory,
    contenders: Sequence[Contender],
    rounds: int,
    progress: Callable[[str], None],
    *,
    count: bool = False,
) -> dict[str, Measured]:
    """Each contender's figures by its name, instructions where `count` asks for them.

    First rounds, which warm the caches, weigh memory instead of time.
    """
    results = {contender.name: Measured(contender) for contender in contenders}
    for number in range(WEIGHINGS):
        progress(f"memory, {number + 1} of {WEIGHINGS}")
        for result in results.values():
            result.memory.append(laboratory.weigh(result.contender))
        laboratory.forget()
    for result in results.values() if count else ():
        progress(f"instructions: {result.contender.name}")
        result.instructions = laboratory.count(result.contender)
    laboratory.forget()
    # Always the same orders, so that two runs of the benchmark differ by the machine only.
    shuffled, orders = list(results.values()), random.Random(1337)
    for number in range(rounds):
        progress(f"round {number + 1} of {rounds}")
        orders.shuffle(shuffled)
        for result in shuffled:
            wall, cpu = laboratory.run(result.contender)
            result.wall.append(wall)
            result.cpu.append(cpu)
        laboratory.forget()
    return results
