"""This process: its environment, standard streams, signals and limits."""

from __future__ import annotations

import posix as os  # the C half of os; the other half costs a start a millisecond

from istio_init.errors import KernelError, limit_remedy

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
else:
    # The C half of signal; the module around it imports enum.
    import _signal


# The lock, two sockets of tables, one of libiptc, one of netlink, a library or a file, and two to spare.
_DESCRIPTORS = 8


def environment() -> dict[str, str]:
    """The environment, decoded as os.environ has it."""
    return {
        name.decode("utf-8", "surrogateescape"): value.decode("utf-8", "surrogateescape")
        for name, value in os.environ.items()
    }


def reserve_standard_descriptors() -> None:
    """Open /dev/null in place of closed standard streams: a log line must not be written to what is opened next."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # Gets the lowest free number, which is this one; writing to it fails as it would have.
            os.open("/dev/null", os.O_RDONLY)


def exit_on_signals() -> None:
    """From here on, SIGINT and SIGTERM end the process with status 130 or 143, unless they are ignored.

    For the start, when there is nothing to undo. As process 1 of a container, it would not be ended otherwise.
    """
    for number in (_signal.SIGINT, _signal.SIGTERM):
        if _signal.getsignal(number) != _signal.SIG_IGN:
            _signal.signal(number, lambda number, _frame: os._exit(128 + number))  # noqa: SLF001 (that is its name)


# The signals that came after remember_signals.
_remembered: list[int] = []


def remember_signals() -> None:
    """From here on, SIGINT, SIGTERM and SIGHUP are noted and end nothing: for a program that cleans up when it ends.

    Called before its modules are imported: as process 1 of a container it would not even notice a SIGTERM until then.
    """
    for number in (_signal.SIGINT, _signal.SIGTERM, _signal.SIGHUP):
        _signal.signal(number, lambda number, _frame: _remembered.append(number))


def termination_requested() -> bool:
    """Whether a signal has come since remember_signals was called."""
    return bool(_remembered)


def require_descriptors() -> None:
    """KernelError where fewer files can be opened than a run needs, to write as well as to undo what it has written."""
    opened: list[int] = []
    try:
        while len(opened) < _DESCRIPTORS:
            opened.append(os.open("/", os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        number = error.errno or 0
        why = limit_remedy(number) or "see that / can be opened"
        text = f"{_DESCRIPTORS} more files must be opened, and only {len(opened)} can be: {error.strerror}; {why}"
        raise KernelError(text, number) from error
    finally:
        for descriptor in opened:
            os.close(descriptor)


def exhausted() -> int:
    """The error number (EMFILE, ENFILE, ENOMEM) of a limit that is reached now, 0 for none."""
    try:
        os.close(os.open("/", os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        return error.errno or 0
    return 0
