"""A host that has nothing: a root directory without a program, a library or a file, in which the plugin is started."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from integration.kit.cni import Plugin

# Where runtimes look for plugins, and what the installed ones say that they are.
PROGRAMS = "/opt/cni/bin"
# What a runtime has around it, in a mount namespace of its own; then the plugin and nothing else.
ENTER = """
mount --rbind /proc "$0/proc"
mount --rbind /run/netns "$0/run/netns"
exec chroot "$0" "$@"
"""


class BarePlugin(Plugin):
    """The plugin out of `programs`, on a host made in `directory` that has nothing besides.

    `more` are further keys of its configuration, `variables` of its environment.
    """

    def __init__(self, directory: Path, programs: Path, *variables: str, **more: Any) -> None:  # noqa: ANN401 (JSON)
        super().__init__(Path("/"), **more)
        self.root = directory / "host"
        for name in ("proc", "run/netns", PROGRAMS[1:]):
            (self.root / name).mkdir(parents=True)
        (self.root / "var").mkdir()
        (self.root / "var/run").symlink_to("/run")
        shutil.copytree(programs, self.root / PROGRAMS[1:], dirs_exist_ok=True)
        self.log, self.run_dir = self.root / "log/cni.log", self.root / "run"
        enter = ["unshare", "--mount", "sh", "-ec", ENTER, str(self.root)]
        self.command = ["env", *variables, *enter, f"{PROGRAMS}/istio-init-cni"]
        self.configuration["run_dir"] = "/run"
