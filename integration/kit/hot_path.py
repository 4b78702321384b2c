"""What a plain run costs, counted instead of timed: imports, system calls, instructions.

`python -m integration.kit.hot_path` records the modules and instructions of today in tests/; read the diff before you
commit it. The program is installed as the image holds it.
"""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Self

from integration.kit.namespace import Namespace
from scripts.benchmark.contenders import RULES
from scripts.benchmark.installation import Variant, install
from scripts.benchmark.processes import COUNTING, counted

TESTS = pathlib.Path(__file__).parents[2] / "tests" / "project"
MODULES = TESTS / "hot_path_modules.txt"
INSTRUCTIONS = TESTS / "hot_path_instructions.txt"

# Each with the command line, and whether its work has been done before.
SCENARIOS = {
    "redirect": (RULES["redirect"], False),
    "tproxy": (RULES["tproxy"], False),
    "in-place": (RULES["redirect"], True),
    "dry-run": ([*RULES["redirect"], "--dry-run"], False),
    "nft": ([*RULES["redirect"], "--force-iptables-binary", "nft"], False),
    "native": ([*RULES["redirect"], "--native-nftables"], False),
    "native-tproxy": ([*RULES["tproxy"], "--native-nftables"], False),
    "native-in-place": ([*RULES["tproxy"], "--native-nftables"], True),
}

_BARE = (sys.executable, "-I", "-S")
# The launcher's first lines, to name all modules at the end.
_TELLING = """
import posix, sys
leave = posix._exit
def told(code):
    posix.write(2, "\\n".join(sys.modules).encode())
    leave(code)
posix._exit = told
"""
# A module that is imported by another comes before it, indented by two more blanks.
_IMPORTED = re.compile(r"^import time:\s+\d+ \|\s+\d+ \| (\s*)(\S+)$", re.MULTILINE)


class Installed:
    """The program in a directory of its own, from `with` to its end."""

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory()
        self.path = pathlib.Path(self._directory.name)
        self.command = install(sys.executable, self.path / "image", Variant())
        # Python tells of imports; of what the image runs as groups it would not know.
        self.files = install(sys.executable, self.path / "files", Variant(modules=True))
        self.telling = install(sys.executable, self.path / "telling", Variant(first=_TELLING))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._directory.cleanup()

    def run(self, namespace: Namespace, flags: list[str], *prefix: str, program: tuple[str, ...] = ()) -> str:
        """What a run that must succeed says on standard error; `prefix` is a command to run it by, such as strace."""
        inside = ["ip", "netns", "exec", namespace.name, *prefix, *(program or (*_BARE, self.command)), *flags]
        environment = {"PATH": os.environ["PATH"], "XTABLES_LOCKFILE": namespace.lock}
        done = subprocess.run(inside, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{' '.join(inside)}: exit {done.returncode}: {done.stderr}"
        return done.stderr

    def imports(self, scenario: str) -> dict[str, str]:
        """The modules that a scenario imports and an empty program does not, each with its first importer."""
        flags, before = SCENARIOS[scenario]
        with Namespace() as namespace:
            if before:
                self.run(namespace, flags)
            log = self.run(namespace, flags, program=(*_BARE, "-X", "importtime", self.files))
        bare = imported_by("pass")
        return {module: importer for module, importer in _importers(log) if module not in bare}

    def run_modules(self, scenario: str) -> set[str]:
        """The program's own modules that the image runs for a scenario."""
        flags, before = SCENARIOS[scenario]
        with Namespace() as namespace:
            if before:
                self.run(namespace, flags)
            log = self.run(namespace, flags, program=(*_BARE, self.telling))
        return {module for module in log.splitlines() if module.startswith("istio_init")}

    def modules_of_cleanup(self) -> set[str]:
        """The program's own modules that the image runs to remove the rules that it made."""
        with Namespace() as namespace:
            self.run(namespace, RULES["redirect"])
            log = self.run(namespace, [*RULES["redirect"], "--cleanup-only"], program=(*_BARE, self.telling))
        return {module for module in log.splitlines() if module.startswith("istio_init")}

    def calls(self, scenario: str, calls: str) -> list[str]:
        """The line of strace for each of these system calls that a scenario makes, by any process."""
        flags, before = SCENARIOS[scenario]
        path = self.path / "calls"
        with Namespace() as namespace:
            if before:
                self.run(namespace, flags)
            self.run(namespace, flags, "strace", "-f", "-qq", "-o", str(path), "-e", f"trace={calls}")
        return path.read_text().splitlines()

    def instructions(self, flags: list[str], *, in_place: bool = False) -> int:
        """The instructions that a run takes outside of the kernel; the same within a percent each time."""
        with Namespace() as namespace:
            if in_place:
                self.run(namespace, flags)
            return counted(self.run(namespace, flags, *COUNTING))


def imported_by(code: str) -> set[str]:
    """The modules that a program imports, those of the interpreter's own start included."""
    done = subprocess.run([*_BARE, "-X", "importtime", "-c", code], capture_output=True, text=True, check=True)
    return {module for module, _ in _importers(done.stderr)}


def _importers(log: str) -> Iterator[tuple[str, str]]:
    """Each module in a log of -X importtime, and the module whose import made it necessary (or nothing)."""
    importers = [""]
    for indent, module in reversed(_IMPORTED.findall(log)):
        depth = len(indent) // 2
        yield module, importers[depth]
        importers[depth + 1 :] = [module]


def bare_instructions() -> int:
    """The instructions that an empty program takes."""
    done = subprocess.run([*COUNTING, *_BARE, "-c", "pass"], capture_output=True, text=True, check=True)
    return counted(done.stderr)


def recorded_modules() -> dict[str, set[str]]:
    """By scenario, the modules that tests/project/hot_path_modules.txt lists for it."""
    listed: dict[str, set[str]] = {scenario: set() for scenario in SCENARIOS}
    for module, scenarios in _entries(MODULES):
        for scenario in scenarios.split():
            listed[scenario].add(module)
    return listed


def recorded_instructions() -> dict[str, float]:
    """By scenario, the ratio to an empty program that tests/project/hot_path_instructions.txt has."""
    return {scenario: float(ratio) for scenario, ratio in _entries(INSTRUCTIONS)}


def _entries(path: pathlib.Path) -> Iterator[tuple[str, str]]:
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            name, _, rest = line.partition(": ")
            yield name, rest


def record() -> None:
    """Write both files anew."""
    with Installed() as installed:
        imports = {scenario: installed.imports(scenario) for scenario in SCENARIOS}
        bare = bare_instructions()
        ratios = {
            name: installed.instructions(flags, in_place=done) / bare for name, (flags, done) in SCENARIOS.items()
        }
    lines = [
        "# What each kind of run imports that an empty program does not. Written by: python -m integration.kit.hot_path"
    ]
    lines += [
        f"{module}: {' '.join(scenario for scenario in SCENARIOS if module in imports[scenario])}"
        for module in sorted(set().union(*imports.values()))
    ]
    MODULES.write_text("\n".join(lines) + "\n")
    lines = ["# Instructions of each kind of run, by those of an empty program: python -m integration.kit.hot_path"]
    lines += [f"{scenario}: {ratio:.2f}" for scenario, ratio in ratios.items()]
    INSTRUCTIONS.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    record()
