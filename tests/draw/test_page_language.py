"""The page speaks Chinese as well: each of its own texts has a translation, and each translation a text."""

from __future__ import annotations

import html
import json
import re
import subprocess

import pytest

from istio_init.cli.app import main
from istio_init.draw.html.document import ABOUT_PROXY, OTHER_PACKET, SCRIPTS, TITLE_OF_NINE, WALK
from istio_init.simulate.path import APPLICATION, CLIENT, SENDERS
from tests.envoy.sidecar import DUMPS
from tests.kit.page_scripts import source

QUIET = {"ENVOY_USER": "0"}
PAGE = ["draw", "-i", "*", "-b", "*", "-u", "1337", "--inbound", "--to", ":9080", "--format", "html"]
TEXT = re.compile(r"<\w+[^>]*\bdata-t>([^<]*)<")
CALL = re.compile(r'\bt\("((?:[^"\\]|\\.)*)"')
OTHER_RULES = {
    "The rules in a network namespace when this page was made. Purposes and flags are those of",
    "The rules of a dump (--from-save). Purposes and flags are those of",
}


def chinese() -> dict[str, str]:
    """The translations, as the page's script has them."""
    program = source("words") + "\nconsole.log(JSON.stringify(CHINESE));"
    done = subprocess.run(["node", "-e", program], capture_output=True, text=True, check=True)
    document: dict[str, str] = json.loads(done.stdout)
    return document


def texts(capsys: pytest.CaptureFixture[str]) -> set[str]:
    """All texts that the page has of its own."""
    assert main([*PAGE, "--envoy", str(DUMPS / "redirect.json")], QUIET) == 0
    page = capsys.readouterr().out
    static = {html.unescape(each) for each in TEXT.findall(page)}
    labels = set(re.findall(r'data-label="([^"]*)"', page))
    scripts = {name: source(name) for name in SCRIPTS if name not in {*WALK, "words"}}
    called = {each for name in scripts for each in CALL.findall(scripts[name])} | {*CALL.findall(source("words"))}
    lists = re.findall(
        r"const (?:EXAMPLES|CAPTURERS|TROUBLE|SIGNS) = \{(.*?)\n?\};", "\n".join(scripts.values()), re.DOTALL
    )
    assert len(lists) == 4
    listed = {
        each
        for text in lists
        for each in re.findall(r'"([A-Z][^"]{3,}|matched|did not match|cannot be decided)"', text)
    }
    return static | labels | called | listed | OTHER_RULES | {APPLICATION, CLIENT, *SENDERS.values()}


def test_each_text_has_its_translation_and_each_translation_its_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert texts(capsys) == chinese().keys()


def test_translations_are_chinese_and_have_the_same_places_for_values() -> None:
    for text, translation in chinese().items():
        assert re.search(r"[\u4e00-\u9fff]", translation), text
        assert text.count("{}") == translation.count("{}"), text


def test_the_texts_of_the_document_are_seen(capsys: pytest.CaptureFixture[str]) -> None:
    assert {ABOUT_PROXY, OTHER_PACKET, TITLE_OF_NINE, "The app asks DNS", "Rule by rule"} <= texts(capsys)
