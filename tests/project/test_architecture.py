"""House rules that the linters can't say: what may be imported where, and what a start may cost."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import istio_init

PACKAGE = Path(istio_init.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
OUTSIDE_KERNEL = [path for path in MODULES if "kernel" not in path.relative_to(PACKAGE).parts]

# What talks to the kernel, or to a program that does.
EDGE = {"ctypes", "socket", "subprocess", "multiprocessing", "fcntl", "pyroute2", "iptc"}
# What everybody may take from _socket: addresses between text and bytes, with no I/O.
SPELLING = {"AF_INET", "AF_INET6", "inet_ntop", "inet_pton"}

# What a plain apply runs through, a dry run, and the CNI plugin.
HOT_MODULES = (
    "cli.start",
    "runner.run",
    "runner.backends",
    "runner.transaction",
    "cni.plugin.plugin",
    "planning.preview",
    "kernel.xtables.firewall",
    "kernel.host.lock",
    "kernel.host.netns",
    "kernel.host.resolv_conf",
    "kernel.netlink.router",
)
# All that these may import beside our own: compiled in, or as small. Everything else costs a pod's start more
# than the apply itself does (docs/design.md has the figures).
HOT_IMPORTS = {
    "_ctypes",
    "_json",
    "_signal",
    "_socket",
    "_struct",
    "ctypes",
    "errno",
    "fcntl",
    "os",
    "posix",
    "struct",
    "time",
}


def relative(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


class RunTime(ast.NodeTransformer):
    """Leaves out what only the type checker sees."""

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
        """Of `if TYPE_CHECKING` only the else."""
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return node.orelse
        return self.generic_visit(node)


def imports(path: Path) -> set[tuple[str, str]]:
    """What a module imports at run time, at its top or in its functions: the outermost module, the name."""
    result = set()
    for node in ast.walk(RunTime().visit(ast.parse(path.read_text()))):
        if isinstance(node, ast.Import):
            result |= {(alias.name.partition(".")[0], "") for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            result |= {((node.module or "").partition(".")[0], alias.name) for alias in node.names}
    return result


@pytest.mark.parametrize("path", OUTSIDE_KERNEL, ids=relative)
def test_only_the_kernels_modules_talk_to_the_kernel(path: Path) -> None:
    assert {module for module, _ in imports(path)}.isdisjoint(EDGE)
    assert {name for module, name in imports(path) if module == "_socket"} <= SPELLING


def test_a_start_imports_next_to_nothing() -> None:
    program = (
        "import sys; before = set(sys.modules); sys.path.insert(0, sys.argv[1])\n"
        "for module in sys.argv[2:]: __import__(f'istio_init.{module}')\n"
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before})"
    )
    command = [sys.executable, "-I", "-S", "-c", program, str(PACKAGE.parent), *HOT_MODULES]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    imported = set(done.stdout.split())
    assert "istio_init" in imported
    assert imported - {"istio_init", "__future__"} <= HOT_IMPORTS


def test_no_two_public_classes_have_one_name() -> None:
    homes: dict[str, list[str]] = {}
    for path in MODULES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes.setdefault(node.name, []).append(relative(path))
    assert {name: paths for name, paths in homes.items() if len(paths) > 1} == {}
