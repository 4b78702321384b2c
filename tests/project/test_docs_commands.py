"""Every command that a page shows, in a block or in a sentence, is one that the program understands.

Their flags are parsed by the program itself, which `--help` at the end keeps from running. What transcripts print is
compared elsewhere; integration/project/test_docs_troubleshooting.py runs what needs a pod.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from istio_init.cli import app, start

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [*(ROOT / "docs").glob("*.md"), *ROOT.glob("*.md")], key=lambda path: path.name
)  # fmt: skip
PROGRAMS = {
    "istio-init": lambda words: app.main(words, {}),
    "istio-iptables": lambda words: start.main(words, {}),
    "istio-clean-iptables": lambda words: start.main(words, {}, "istio-clean-iptables"),
}
BLOCK = re.compile(r"^```[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
NAMES = "|".join(sorted(PROGRAMS, key=len, reverse=True))
# A command, wherever it is in a line: behind a prompt, a pipe or ip netns exec, up to what isn't its own.
COMMAND = re.compile(rf"(?:^|(?<=\s)|(?<=/))(?P<program>{NAMES})(?P<words>(?: [^|;&<>#]+)?)")
# Where a sentence leaves something out, and what only Istio's own program has.
LEFT_OUT = re.compile(r"\.\.\.|…")


def commands(page: str) -> Iterator[str]:
    """The commands of a page that have words."""
    lines = [line for block in BLOCK.findall(page) for line in _joined(block).splitlines()]
    prompts = [line for line in lines if not re.match(r"[-+=:~*#|{\[]|\d{4}-|\S+: ", line.strip())]
    for text in (*prompts, *SPAN.findall(BLOCK.sub("", page))):
        match = COMMAND.search(text.removeprefix("$ ").strip())
        if match and match["words"].strip().startswith(("-", *VERBS)) and not LEFT_OUT.search(text):
            yield f"{match['program']}{match['words'].rstrip()}"


def _joined(block: str) -> str:
    return block.replace("\\\n", " ")


VERBS = (*(str(each.name) for each in app.app({}).registered_commands), "cni")


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_the_program_understands_what_the_page_says(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in commands(path.read_text()):
        program, *words = shlex.split(command)
        verb = 0 if words[0].startswith("-") else 2 if words[0] == "cni" else 1
        code = PROGRAMS[program]([*words[:verb], "--help", *words[verb:]])
        error = capsys.readouterr().err
        # A sentence may name a flag without a value.
        assert code == 0 or "requires an argument" in error, f"{command}: {error}"


def test_the_commands_are_seen() -> None:
    pages = {path.name: [*commands(path.read_text())] for path in PAGES}
    assert len(pages["troubleshooting.md"]) >= 8
    assert len(pages["migration.md"]) >= 4
    assert "istio-init check --from-pod pod.json --container ID" in " ".join(pages["troubleshooting.md"])
    assert sum(map(len, pages.values())) > 80
    assert [*commands("Say `istio-init prove --no-such`.")] == ["istio-init prove --no-such"]
