"""Has hatchling put the files that wheel.py makes into a wheel."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

WHEEL = Path(__file__).with_name("wheel.py")


class Hook(BuildHookInterface[Any]):
    """The files are made by an interpreter like the one that builds the wheel: pip builds for that one."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Before the wheel is put together. Sources of an editable one are meant to change: it gets none."""
        if version == "editable":
            return
        self._made = tempfile.TemporaryDirectory()
        # Without the columns of each instruction, as in the image; and one that knows nothing of hatchling.
        command = [sys.executable, "-ISB", "-X", "no_debug_ranges", WHEEL, self.root, self._made.name]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            # The program works without, only slower.
            self.app.display_warning(f"no byte code for a fast start: {done.stderr}")
            return
        for file in sorted(Path(self._made.name).iterdir()):
            build_data["force_include"][str(file)] = f"istio_init/{file.name}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """When the wheel is there."""
        if version != "editable":
            self._made.cleanup()
