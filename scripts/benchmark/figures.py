"""From runs to figures: medians, and ratios with their spread."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times another's: the ratio of the medians, and the quartiles of the ratios within each round."""

    median: float
    lower: float
    upper: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.lower:.2f} to {self.upper:.2f})"


def ratio(runs: Sequence[float], base: Sequence[float]) -> Ratio:
    """Runs against the base's of the same rounds; ValueError where the numbers of rounds differ."""
    each = [run / other for run, other in zip(runs, base, strict=True)]
    lower, _, upper = statistics.quantiles(each, n=4, method="inclusive") if len(each) > 1 else each * 3
    return Ratio(statistics.median(runs) / statistics.median(base), lower, upper)


def milliseconds(runs: Sequence[float]) -> float:
    """The median of seconds, in milliseconds."""
    return statistics.median(runs) * 1000
