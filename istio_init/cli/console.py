"""The console script `istio-init`, which a person waits for: Typer, rich and what the verbs import take half a second.

Ctrl-C meanwhile must show no traceback.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import NoReturn

from istio_init.cli.start import INTERRUPTED
from istio_init.kernel.host.process import remember_signals, reserve_standard_descriptors


def istio_init() -> NoReturn:
    """Run `istio-init` with the process' arguments, and end with its exit code."""
    reserve_standard_descriptors()
    keeps = sys.argv[1:3] == ["cni", "install"] and "--watch" in sys.argv
    if keeps:
        # What it keeps on the node has to be taken away even if the signal comes before the verb is imported.
        remember_signals()
    try:
        # The image's launcher ends the process at once; a verb may have a terminal to restore.
        if not keeps and signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        from istio_init.cli import app

        code = app.main(sys.argv[1:], os.environ)
    except KeyboardInterrupt:
        code = INTERRUPTED
    sys.exit(code)
