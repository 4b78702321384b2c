"""The console script `istio-init`, for people: importing Typer, rich and the verbs takes half a second.

Ctrl-C during that time must not print a traceback. What no module can prevent is one from Python's own start, and from
what pip's wrapper imports before this module.
"""

from __future__ import annotations

# First, and only what Python has loaded already: until the verb runs, Ctrl-C ends the process without a word.
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from typing import NoReturn
else:
    # The C half of signal; the module around it imports enum.
    import _signal as signal

if (
    sys.argv[:1]
    and sys.argv[0].rpartition("/")[2] == "istio-init"
    and signal.getsignal(signal.SIGINT) != signal.SIG_IGN
):
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import os  # noqa: E402 (the signal comes first)

from istio_init.cli.start import INTERRUPTED, STARVED, starved  # noqa: E402 (the same)
from istio_init.kernel.host.process import remember_signals, reserve_standard_descriptors  # noqa: E402 (the same)


def istio_init() -> NoReturn:
    """Run `istio-init` with the process's arguments, and exit with its code."""
    reserve_standard_descriptors()
    verb = sys.argv[1:3]
    watches = verb == ["cni", "agent"] or (verb == ["cni", "install"] and "--watch" in sys.argv)
    if watches:
        # The plugin must be removed from the node even if the signal arrives before the verb is imported.
        remember_signals()
    try:
        # The image's launcher ends the process at once; a verb may have a terminal to restore.
        if not watches and signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        from istio_init.cli import app

        code = app.main(sys.argv[1:], os.environ)
    except KeyboardInterrupt:
        code = INTERRUPTED
    except STARVED as error:
        code = starved("istio-init", error)
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        # Python's end, too, is none to print a traceback of.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.exit(code)
