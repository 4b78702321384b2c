"""README.md is short and true, and README.zh-CN.md says the same in Chinese: sections, code, links and figures.

After a change of README.md, update the translation, then `python -m tests.project.test_readme` puts the commands'
present output into both and records that they match. What needs root is in integration/project/test_readme.py.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from pathlib import Path

from tests.kit.transcripts import BLOCK as TRANSCRIPT
from tests.kit.transcripts import transcribed

ROOT = Path(__file__).parents[2]
ENGLISH, CHINESE = ROOT / "README.md", ROOT / "README.zh-CN.md"
BLOCK = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
RECORD = re.compile(r"(?<=<!-- README\.md sha256: )[0-9a-f]{64}")
# What is told in Chinese alone: the article that its readers come from.
ALONE = re.compile(r"^<!-- only in Chinese -->\n.*?^<!-- end -->\n\n", re.MULTILINE | re.DOTALL)
SIDECAR = re.compile(r"(?<=^<!-- sidecar -->\n)```\n.*?^```$", re.MULTILINE | re.DOTALL)
EACH_OTHER = {ENGLISH.name, CHINESE.name}
TELL = (
    "README.md has changed since README.zh-CN.md was brought up to date: update the translation, then run "
    "`python -m tests.project.test_readme`"
)
# Lines: a stranger reads it in one go.
LONGEST = 149


def digest() -> str:
    return hashlib.sha256(ENGLISH.read_bytes()).hexdigest()


def common(page: Path) -> str:
    """The text that both languages have."""
    return ALONE.sub("", page.read_text())


def prose(page: Path) -> str:
    """The same without its blocks of code."""
    return BLOCK.sub("", common(page))


def test_it_is_short() -> None:
    assert len(ENGLISH.read_text().splitlines()) <= LONGEST


def test_it_shows_what_the_commands_print() -> None:
    page = ENGLISH.read_text()
    assert len(TRANSCRIPT.findall(page)) >= 4
    assert transcribed(page) == page, "python -m tests.project.test_readme writes it anew"


def test_links_lead_to_files_that_are_there() -> None:
    links = {link.partition("#")[0] for link in re.findall(r"\]\(([^)]*)\)", ENGLISH.read_text())}
    assert [link for link in links if not link.startswith("http") and not (ROOT / link).exists()] == []


def test_the_translation_is_of_this_readme() -> None:
    assert RECORD.findall(CHINESE.read_text()) == [digest()], TELL


def test_blocks_of_code_are_the_same() -> None:
    assert BLOCK.findall(common(CHINESE)) == BLOCK.findall(common(ENGLISH))


def test_what_is_told_in_chinese_alone_shows_what_is_printed_and_leads_to_what_is_there() -> None:
    """integration/project/test_readme.py compares the page with what the demonstration prints."""
    (alone,) = ALONE.findall(CHINESE.read_text())
    assert SIDECAR.findall(alone) == SIDECAR.findall((ROOT / "docs" / "envoy.md").read_text())
    links = [link for link in re.findall(r"\]\(([^)]*)\)", alone) if not link.startswith("http")]
    assert links
    assert all((ROOT / link).exists() for link in links)


def test_headings_are_the_same_in_number_and_depth() -> None:
    depths = [re.findall(r"^#+(?= )", prose(page), re.MULTILINE) for page in (CHINESE, ENGLISH)]
    assert depths[0] == depths[1]


def test_links_lead_to_the_same_places() -> None:
    chinese, english = (Counter(re.findall(r"\]\(([^)]*)\)", prose(page))) for page in (CHINESE, ENGLISH))
    assert {link: n for link, n in chinese.items() if link not in EACH_OTHER} == {
        link: n for link, n in english.items() if link not in EACH_OTHER
    }
    assert ENGLISH.name in chinese
    assert CHINESE.name in english


def test_the_same_flags_and_names_are_spoken_of() -> None:
    chinese, english = (set(re.findall(r"`([^`]+)`", prose(page))) for page in (CHINESE, ENGLISH))
    assert chinese == english


def test_tables_have_the_same_figures() -> None:
    chinese, english = (re.findall(r"^\|.*\|$", prose(page), re.MULTILINE) for page in (CHINESE, ENGLISH))
    assert len(chinese) == len(english)
    for row, original in zip(chinese, english, strict=True):
        assert re.findall(r"\d[\d.]*", row) == re.findall(r"\d[\d.]*", original)


if __name__ == "__main__":
    for readme in (ENGLISH, CHINESE):
        readme.write_text(transcribed(readme.read_text()))
    CHINESE.write_text(RECORD.sub(digest(), CHINESE.read_text()))
