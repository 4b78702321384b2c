"""The console script `istio-init`, which a person waits for: Typer, rich and what the verbs import take half a second.

Whoever presses Ctrl-C meanwhile wants to see no traceback.
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from istio_init.cli.start import INTERRUPTED
from istio_init.kernel.host.process import reserve_standard_descriptors


def istio_init() -> NoReturn:
    """Run `istio-init` with the process' arguments, and end with its exit code."""
    reserve_standard_descriptors()
    try:
        from istio_init.cli import app

        code = app.main(sys.argv[1:], os.environ)
    except KeyboardInterrupt:
        code = INTERRUPTED
    sys.exit(code)
