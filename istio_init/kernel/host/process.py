"""What this process was started with: its environment and its standard streams."""

from __future__ import annotations

import posix as os  # the C half of os; the other half costs a start a millisecond


def environment() -> dict[str, str]:
    """The process' environment, decoded as os.environ has it."""
    return {
        name.decode("utf-8", "surrogateescape"): value.decode("utf-8", "surrogateescape")
        for name, value in os.environ.items()
    }


def reserve_standard_descriptors() -> None:
    """Keep the numbers of closed standard streams from what is opened next: a log line would be written to it."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # Gets the lowest number that is free, this one; writing to it fails as it would have.
            os.open("/dev/null", os.O_RDONLY)
