"""Makes the image's root file system that of the image for nodes: node.py PROGRAM DEPENDENCIES ROOT.

To what assemble.py has put there come the plugin's bundle (plugin.py), where the installer looks for it, and further
dependencies. What image and bundle both have is there once, under two names.
"""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import assemble
import plugin

# istio_init/cli/verbs/cni.py names it.
BUNDLE = assemble.HOME / "cni"


def share(root: Path) -> None:
    """Have files of the same content and mode be one file."""
    known: dict[tuple[int, bytes], Path] = {}
    for path in sorted(root.rglob("*")):
        if path.is_symlink() or not path.is_file():
            continue
        first = known.setdefault((path.stat().st_mode, hashlib.sha256(path.read_bytes()).digest()), path)
        if first != path:
            path.unlink()
            os.link(first, path)


def main(program: Path, dependencies: Path, root: Path) -> None:
    """Complete the root file system."""
    assemble.unpack_modules(root)
    # protobuf's is a namespace package, which modulefinder does not know.
    (dependencies / "google" / "__init__.py").touch()
    assemble.write_dependencies(dependencies, root)
    # What the plugin's bundle has of it, for `cni repair`.
    for module in sorted(plugin.YAML.glob("*.py")):
        if module.name != "cyaml.py":
            assemble.write_module(module, root / assemble.HOME / "yaml" / module.name, module)
    # In pure Python, so that no shared library comes along with any of it.
    assemble.write_library(assemble.standard_library([dependencies]), root)
    plugin.main(program, root / BUNDLE)
    # What the bundle has in files, too, is there once only if it stays in files.
    inside = (path.name.removesuffix(".pyc") for path in (root / BUNDLE / "python").iterdir())
    assemble.pack_modules(root, frozenset(inside))
    # The bundle's serves both: what it does not find beside itself it looks for where every program does.
    (root / "usr/bin/python3").unlink()
    os.link(root / BUNDLE / "python3", root / "usr/bin/python3")
    share(root)
    assemble.set_times(root, int(os.environ.get("SOURCE_DATE_EPOCH", "0")))


if __name__ == "__main__":
    main(*(Path(argument).resolve() for argument in sys.argv[1:]))
