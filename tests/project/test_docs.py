"""What the documentation says of the program is what the program says of itself.

`python -m tests.project.test_docs` puts the commands' present output into the pages of TRANSCRIPTS.
"""

from __future__ import annotations

import pathlib
import re

import pytest

from istio_init import __version__
from istio_init.cli.app import app
from istio_init.options.table import OPTIONS
from scripts.generate.options_page import page
from tests.kit.transcripts import BLOCK, transcribed

SHOWN = re.compile(r"^\$ istio-init (\w+)", re.MULTILINE)
ROOT = pathlib.Path(__file__).parents[2]
# Pages whose commands need neither root nor a namespace.
TRANSCRIPTS = (
    "draw.md",
    "envoy.md",
    "envoy.zh.md",
    "explain.md",
    "inject.md",
    "json.md",
    "prove.md",
    "quickstart.md",
    "quickstart.zh.md",
    "rules.md",
    "rules.zh.md",
    "terminal.md",
)


def test_the_options_page_is_made_from_the_table() -> None:
    assert (ROOT / "docs" / "options.md").read_text() == page()


def test_every_verb_that_asks_has_a_page_with_its_output_that_the_readme_leads_to() -> None:
    readme = (ROOT / "README.md").read_text()
    pages = {path.name: path.read_text() for path in (ROOT / "docs").glob("*.md")}
    shown = {verb for name, page in pages.items() if f"docs/{name}" in readme for verb in SHOWN.findall(page)}
    verbs = {str(command.name) for command in app({}).registered_commands}
    assert shown >= verbs - {"apply", "clean"}


def test_the_changelog_knows_this_version() -> None:
    assert (
        f"## [{__version__}]" in (ROOT / "CHANGELOG.md").read_text()
        or "## [Unreleased]" in (ROOT / "CHANGELOG.md").read_text()
    )


def test_the_readme_speaks_of_no_flag_that_there_is_not() -> None:
    recorded = {f"--{option.flag}" for option in OPTIONS} | {
        f"--no-{option.flag}" for option in OPTIONS if option.switch
    }
    words = (ROOT / "README.md").read_text().replace("`", " ").split()
    flags = {word.split("=")[0].rstrip(".,:;)") for word in words if word.startswith("--istio")}
    assert flags <= recorded


@pytest.mark.parametrize("name", TRANSCRIPTS)
def test_the_page_shows_what_its_commands_print(name: str) -> None:
    page = (ROOT / "docs" / name).read_text()
    assert BLOCK.findall(page)
    assert transcribed(page) == page, "python -m tests.project.test_docs writes it anew"


if __name__ == "__main__":
    for each in TRANSCRIPTS:
        path = ROOT / "docs" / each
        path.write_text(transcribed(path.read_text()))


@pytest.mark.parametrize(
    "path", [*ROOT.glob("README*.md"), ROOT / "RELEASING.md", *(ROOT / "docs").glob("*.md")], ids=lambda path: path.name
)
def test_the_files_that_a_page_names_are_there(path: pathlib.Path) -> None:
    # Capitals in a path stand for something.
    named = re.findall(r"`((?:istio_init|integration|tests|scripts|image|deploy)/[a-z\d_./-]+)`", path.read_text())
    assert [each for each in named if not (ROOT / each).exists()] == []
