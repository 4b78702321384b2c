"""The program installed as people have it: as the image holds it, and by pip in a virtual environment."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

IMAGE = ROOT / "image"
# Where the image has the program, and how its bundle is made: by the interpreter that will read it.
HOME = "/usr/lib/istio-init"
BUNDLING = """
import pathlib, sys
sys.path.insert(0, sys.argv[1])
import assemble
program, target = map(pathlib.Path, sys.argv[2:])
assemble.write_bundle(program, target)
(target / "launcher").write_text(assemble.slim.uncommented((assemble.HERE / "launcher.py").read_text()))
"""
# The first line of those in the launcher that read the bundle, and how the last one begins.
BUNDLED = ("try:", "install(")
# What the importer does beside importing.
UNCOLLECTED = "import gc\ngc.disable()"


class Unavailable(Exception):
    """Why a contender can't take part on this machine."""


@dataclass(frozen=True, slots=True)
class Variant:
    """A way to install that is not the image's: by default it is.

    The interpreter's flags; modules in files of their own with this kind of byte code ("" for none), in place of
    their sources or `beside` them; lines to put first in the launcher.
    """

    flags: str = " -ISXutf8"
    modules: bool = False
    byte_code: str = "unchecked-hash"
    beside: bool = False
    first: str = ""


def install(python: str, directory: Path, variant: Variant) -> str:
    """Install into a directory as the image does, but for what the variant says; returns the command's path."""
    program = directory / "program"
    package = program / "istio_init"
    shutil.copytree(ROOT / "istio_init", package, ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run(
        [python, "-IB", "-X", "no_debug_ranges", "-c", BUNDLING, str(IMAGE), str(program), str(directory)], check=True
    )
    home = str(program) if variant.modules else f"{directory}{HOME}"
    lines = (directory / "launcher").read_text().replace(HOME, home).splitlines()
    if variant.modules:
        compile_modules(python, package, variant)
        first, last = (next(at for at, line in enumerate(lines) if line.startswith(begin)) for begin in BUNDLED)
        del lines[first : last + 1]
    command = directory / "istio-iptables"
    head = [f"#!{python}{variant.flags}", variant.first, *([UNCOLLECTED] if variant.modules else [])]
    command.write_text("\n".join([*head, *lines]))
    command.chmod(0o755)
    return str(command)


def compile_modules(python: str, package: Path, variant: Variant) -> None:
    """Byte code for each module."""
    if variant.byte_code:
        beside = [] if variant.beside else ["-b"]
        mode = ["--invalidation-mode", variant.byte_code]
        subprocess.run([python, "-I", "-m", "compileall", "-q", *beside, *mode, str(package)], check=True)
        for source in () if variant.beside else list(package.rglob("*.py")):
            source.unlink()


def environment(python: str, directory: Path) -> Path:
    """A new virtual environment with istio-init, pyroute2 and, if it can be built, python-iptables; its bin directory.

    Without setuptools, which Python had there up to 3.11 and which adds to each start of Python (docs/speed.md).
    """
    pip = [str(directory / "bin" / "python"), "-m", "pip", "--quiet", "--disable-pip-version-check"]
    without = [*pip, "uninstall", "--yes", "setuptools"]
    for command in ([python, "-m", "venv", str(directory)], without, [*pip, "install", str(ROOT)]):
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            reason = (done.stderr or done.stdout).strip().split("\n")[-1]
            raise Unavailable(f"no virtual environment: {' '.join(command)}: exit {done.returncode}: {reason}")
    # What only imports are measured of; python-iptables has no wheel, and needs a compiler.
    for package in ("pyroute2", f"{ROOT}[python-iptables]"):
        subprocess.run([*pip, "install", package], check=False, capture_output=True)
    return directory / "bin"
