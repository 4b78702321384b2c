"""CONTRIBUTING.md is true: its example, applied step by step to a copy of the tree, ends with the checks green."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "CONTRIBUTING.md").read_text()
STEP = re.compile(
    r"^ *<!-- insert into (\S+) before: (.*?) -->\n *```(?:python)?\n(.*?)^ *```$", re.MULTILINE | re.DOTALL
)
COMMANDS = re.compile(r"<!-- run -->\n```\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINTERS = ("format", "ruff", "types", "imports")
# The rooms that know options; the whole suite is run for the tree itself. What waits for terminals and signals, and
# what runs where there is no kernel, knows none.
TESTS = (
    "tests/options", "tests/planning", "tests/simulate", "tests/cli", "tests/verify/test_proof.py",
    "tests/project/test_docs.py", "tests/project/test_man_pages.py", "tests/project/test_architecture.py",
    *(f"--ignore=tests/cli/test_{name}.py" for name in ("elsewhere", "interrupts", "terminal", "who_runs")),
)  # fmt: skip


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of what is committed, and of what is about to be."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tmp_path / name)
    return tmp_path


def run(tree: Path, *command: str) -> None:
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "VIRTUAL_ENV": sys.prefix,
        "PYTHONPATH": str(tree),
    }
    done = subprocess.run(
        command, cwd=tree, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert done.returncode == 0, f"{' '.join(command)}:\n{done.stdout[-4000:]}"


def apply(tree: Path) -> None:
    """Insert each block of code where the page says."""
    steps = STEP.findall(PAGE)
    assert len(steps) == 8
    for name, before, code in steps:
        lines = (tree / name).read_text().splitlines(keepends=True)
        places = [number for number, line in enumerate(lines) if line.strip().startswith(before)]
        assert len(places) == 1, f"{name}: {before!r} begins {len(places)} lines"
        lines.insert(places[0], _fitted(code, lines, places[0]))
        (tree / name).write_text("".join(lines))


def _fitted(code: str, lines: list[str], place: int) -> str:
    """Code indented as the line that it is put before, and as far from it as that is from what precedes it."""
    indent = lines[place][: len(lines[place]) - len(lines[place].lstrip())]
    blank = next(number for number in range(place) if lines[place - 1 - number].strip())
    return textwrap.indent(textwrap.dedent(code), indent) + "\n" * blank


def test_the_example_ends_with_the_checks_green(tree: Path) -> None:
    apply(tree)
    commands = COMMANDS.search(PAGE)
    assert commands
    for command in commands[1].splitlines():
        run(tree, "bash", "-c", command)
    assert "--uid-owner 1001 -j RETURN" in (tree / "tests/planning/golden/exclude-uids.txt").read_text()
    run(tree, "scripts/lint", *LINTERS)
    run(
        tree,
        sys.executable,
        "-m",
        "pytest",
        "--quiet",
        "-p",
        "no:cacheprovider",
        "-x",
        *TESTS,
    )


def test_paths_that_the_page_names_are_there() -> None:
    named = set(re.findall(r"`?\b((?:istio_init|tests|integration|scripts|docs)/[\w./-]+\w)", PAGE))
    named -= {"tests/planning/golden/exclude-uids.txt"}
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []
    modules = re.findall(r"python -m ([\w.]+)", PAGE)
    places = {name: ROOT / name.replace(".", "/") for name in modules}
    assert [
        name for name, at in places.items() if not (at.with_suffix(".py").exists() or (at / "__main__.py").exists())
    ] == []
