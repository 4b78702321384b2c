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

# What of the program needs more of the standard library than all else, and what that is.
AGENT = "istio_init.cni.agent.agent"
AGENT_TAKES = {"_ssl", "asyncio", "concurrent", "ssl"}
# istio_init/cli/verbs/cni_flags.py names it.
BUNDLE = assemble.HOME / "cni"


def share(root: Path) -> None:
    """Have files of the same content and mode be one file."""
    first_by_content: dict[tuple[int, bytes], Path] = {}
    for path in sorted(root.rglob("*")):
        if path.is_symlink() or not path.is_file():
            continue
        first = first_by_content.setdefault((path.stat().st_mode, hashlib.sha256(path.read_bytes()).digest()), path)
        if first != path:
            path.unlink()
            os.link(first, path)


def write_library(program: Path, dependencies: Path, root: Path) -> None:
    """What the dependencies and the agent import of the standard library, with OpenSSL for the API server's TLS."""
    names = [assemble.dotted(module) for module in assemble.modules(dependencies)]
    without = tuple(name for name in assemble.LEFT_OUT if name not in AGENT_TAKES)
    files = assemble.imported([program, dependencies], [*names, AGENT], without).values()
    library = sorted({file for file in files if assemble.is_library(file)})
    assemble.write_library(library, root)
    extensions = [file for file in library if file.suffix == ".so"]
    shared = {file for file in assemble.libraries(extensions) if not (root / str(file).lstrip("/")).exists()}
    for file in sorted(shared):
        assemble.copy(file, root)
    assemble.write_origins(root, shared)
    opened = (path for path in root.rglob("*.so*") if not path.is_relative_to(root / assemble.HOME))
    assemble.write_linker_cache(root, {"/" / path.relative_to(root) for path in opened})


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
    write_library(program, dependencies, root)
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
