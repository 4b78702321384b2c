"""Puts the CNI plugin's bundle together, for hosts that have no Python: plugin.py PROGRAM TARGET.

An interpreter that needs nothing of a host but its kernel, in a directory that may lie anywhere:

    ld.so               the dynamic linker; a script whose first line names it, and python3, is a program
    python3             the interpreter; it looks for shared libraries in lib, which is beside it
    python3._pth        has it look for modules in python, and neither at the environment nor elsewhere
    launcher.py         what is in the plugin behind that first line (istio_init/cni/node/program.py)
    istio_init.bundle   the plugin
    python, lib         the standard library and PyYAML as far as it imports them, and all shared libraries
    origins             the packages that the files come from, and their licences

The interpreter and the libraries are the distribution's (assemble.py). The same input makes the same bytes.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parent))
import assemble

if TYPE_CHECKING:
    from collections.abc import Iterator

ENTRY = "istio_init.cni.plugin.plugin"
# Typer's, and what needs further packages; then what the standard library imports in branches that nothing here takes.
LEFT_OUT = (
    *assemble.LEFT_OUT,
    *(
        "istio_init.cli.typer_options",
        "istio_init.options.public",
        "istio_init.kernel.xtables.python_iptables_child",
        "istio_init.kernel.xtables.python_iptables_options",
        "iptc",
        "kubernetes",
        "typer",
    ),
    *("argparse", "email", "importlib.metadata", "importlib.resources", "inspect", "statistics"),
    *("tarfile", "zipfile"),
    # PyYAML's part in C, which it does without.
    "_yaml",
    "yaml._yaml",
    "yaml.cyaml",
)
# The distribution's PyYAML, which reads the annotation proxy.istio.io/config.
YAML = Path("/usr/lib/python3/dist-packages/yaml")
# What a call imports, in the groups that it is read in: always, with a plan; to carry it out.
STARTS = ((ENTRY, "istio_init.planning.plan"), *assemble.STARTS[1:])


def write_modules(program: Path, target: Path) -> list[Path]:
    """The plugin in one file, and the modules of other packages that it imports; returns the files of those."""
    with only_yaml() as packages:
        files = assemble.imported([program, packages], [ENTRY], LEFT_OUT)
        yaml = sorted({YAML / file.name for file in files.values() if file.is_relative_to(packages)})
    own = sorted(file.relative_to(program) for file in files.values() if file.is_relative_to(program))
    library = sorted({file for file in files.values() if assemble.is_library(file)})
    inside = {file: Path("python", assemble.below_library(file)) for file in library}
    inside |= {file: Path("python/yaml", file.name) for file in yaml}
    for file, place in inside.items():
        assemble.write_module(file, target / place, file)
    groups, extensions = assemble.grouped(program, own, STARTS)
    places = {name: str(inside[Path(path)]) for name, path in extensions.items()}
    assemble.write_groups(target / "istio_init.bundle", groups, len(STARTS), places)
    return [*library, *yaml]


@contextmanager
def only_yaml() -> Iterator[Path]:
    """A directory with PyYAML and nothing else of the distribution's packages."""
    if not (YAML / "__init__.py").is_file():
        raise SystemExit(f"{YAML}: there is no PyYAML: on Debian or Ubuntu, apt-get install python3-yaml")
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "yaml").symlink_to(YAML)
        yield Path(directory)


def write_interpreter(python: Path, target: Path) -> None:
    """The interpreter, which finds its libraries beside itself, and those that it starts or opens as well."""
    assemble.copy(python, target, "python3")
    # DT_RPATH, not DT_RUNPATH: that counts for what is opened later, too, and before LD_LIBRARY_PATH.
    subprocess.run(["patchelf", "--force-rpath", "--set-rpath", "$ORIGIN/lib", target / "python3"], check=True)
    # Beside an interpreter this makes it isolated, without site (Modules/getpath.py).
    (target / "python3._pth").write_text("python\n")


def linker(python: Path) -> Path:
    """The dynamic linker that the interpreter names."""
    patchelf = subprocess.run(["patchelf", "--print-interpreter", python], check=True, capture_output=True, text=True)
    return Path(patchelf.stdout.strip())


def main(program: Path, target: Path) -> None:
    """Write the whole bundle to a directory."""
    python = Path(sys.executable).resolve()
    library = write_modules(program, target)
    opened, loader = assemble.opened_libraries(), linker(python)
    needed = assemble.libraries([python, *opened, *(file for file in library if file.suffix == ".so")])
    shared = {*opened, *(file for file in needed if file.resolve() != loader.resolve())}
    for file in sorted(shared):
        assemble.copy(file, target, f"lib/{file.name}")
    assemble.copy(loader, target, "ld.so")
    write_interpreter(python, target)
    launcher = (assemble.HERE / "plugin_launcher.py").read_text()
    (target / "launcher.py").write_text(assemble.slim.uncommented(launcher))
    (target / "launcher.py").chmod(0o644)
    assemble.write_origins(target / "origins", {python, loader, *shared, *library})
    assemble.set_times(target, int(os.environ.get("SOURCE_DATE_EPOCH", "0")))


if __name__ == "__main__":
    main(*(Path(argument).resolve() for argument in sys.argv[1:]))
