"""Reading nftables in several dumps: what is returned belongs to one generation of the rules."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from istio_init.errors import KernelError
from istio_init.kernel.netlink.channel import ATTEMPTS
from istio_init.kernel.netlink.nfnetlink import NfnetlinkChannel


class Scripted(NfnetlinkChannel):
    """A channel whose generations are given."""

    def __init__(self, *generations: int) -> None:
        self._generations = iter(generations)

    def generation(self) -> int:
        """The next of them."""
        return next(self._generations)


def results(*each: int | KernelError) -> Callable[[], int]:
    """A read that returns, or raises, one after the other."""
    values: Iterator[int | KernelError] = iter(each)

    def read() -> int:
        value = next(values)
        if isinstance(value, KernelError):
            raise value
        return value

    return read


def test_what_is_read_within_one_generation_is_returned() -> None:
    assert Scripted(7, 7).consistent(results(1)) == (7, 1)
    assert Scripted(7).consistent(results(1), 7) == (7, 1)


def test_what_changed_meanwhile_is_read_again() -> None:
    assert Scripted(7, 8, 9, 9).consistent(results(1, 2, 3)) == (9, 3)


def test_a_failure_counts_only_if_nothing_changed() -> None:
    gone = KernelError("no such table", 2)
    assert Scripted(7, 8, 8).consistent(results(gone, 2)) == (8, 2)
    with pytest.raises(KernelError, match="no such table"):
        Scripted(7, 7).consistent(results(gone))


def test_rules_that_never_stay_the_same_are_an_error() -> None:
    with pytest.raises(KernelError, match=f"changed during each of {ATTEMPTS} attempts"):
        Scripted(*range(100)).consistent(results(*range(100)))
