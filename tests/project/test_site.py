"""The documentation site builds without a warning, its links work, and its pages load nothing from elsewhere."""

from __future__ import annotations

import html.parser
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
# What a browser loads by itself, by tag.
LOADED = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src"}
# Pages that have a translation in step with them.
TRANSLATED = (
    *("quickstart", "rules", "troubleshooting", "envoy", "security", "diagnose", "deploy", "migration", "faq"),
)
# Links of <link> that are not loaded.
INERT = {"canonical", "alternate", "prev", "next"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `mkdocs build --strict` builds it: a broken link or anchor is an error."""
    directory = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(directory)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return directory


class Loads(html.parser.HTMLParser):
    """The addresses that a page has its reader's browser load."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what the tag loads."""
        values = dict(attrs)
        if tag in LOADED and values.get("rel") not in INERT:
            self.addresses.append(values.get(LOADED[tag]) or "")


def test_no_page_loads_anything_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        loads = Loads()
        loads.feed(page.read_text())
        assert [address for address in loads.addresses if re.match(r"(https?:)?//", address)] == [], page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//|@import", sheet.read_text()), sheet


def test_every_page_has_its_place_in_the_navigation() -> None:
    text = (ROOT / "mkdocs.yml").read_text()
    # The file as a whole has tags that are mkdocs' own.
    nav = yaml.safe_load(text[text.index("\nnav:") :])["nav"]
    named = {name for part in nav for entry in next(iter(part.values())) for name in _names(entry)}
    pages = {path.name for path in (ROOT / "docs").glob("*.md") if not path.name.endswith(".zh.md")}
    assert named == pages, "mkdocs.yml, nav"


def _names(entry: str | dict[str, str]) -> list[str]:
    return [entry] if isinstance(entry, str) else [*entry.values()]


def test_pages_that_newcomers_need_are_there_in_chinese(site: Path) -> None:
    for name in ("index", *TRANSLATED):
        assert (ROOT / "docs" / f"{name}.zh.md").exists()
    assert "为什么是这九条规则" in (site / "zh" / "rules" / "index.html").read_text()


@pytest.mark.parametrize("name", TRANSLATED)
def test_a_translation_has_the_commands_and_the_sections_of_its_original(name: str) -> None:
    texts = [(ROOT / "docs" / f"{name}{suffix}.md").read_text() for suffix in ("", ".zh")]
    blocks = [re.findall(r"^```.*?^```$", text, re.MULTILINE | re.DOTALL) for text in texts]
    assert blocks[0] == blocks[1]
    depths = [re.findall(r"^#+(?= )", re.sub(r"(?ms)^```.*?^```$", "", text), re.MULTILINE) for text in texts]
    assert depths[0] == depths[1]
    tables = [len(re.findall(r"^\|", text, re.MULTILINE)) for text in texts]
    assert tables[0] == tables[1]
    items = [len(re.findall(r"^(?:-|\d+\.) ", text, re.MULTILINE)) for text in texts]
    assert items[0] == items[1]
