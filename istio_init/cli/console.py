"""The console script `istio-init`, for people: importing Typer, rich and the verbs takes half a second.

Ctrl-C during that time must not print a traceback.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import NoReturn

# pip's wrapper does more between this import and the call of the function below: until then Ctrl-C ends the process.
if sys.argv[:1] and os.path.basename(sys.argv[0]) == "istio-init" and signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from istio_init.cli.start import INTERRUPTED
from istio_init.kernel.host.process import remember_signals, reserve_standard_descriptors


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
    sys.exit(code)
