"""Phrases that no help text, page, docstring or comment of this project uses, each with what to say instead."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
THIS = Path(__file__).resolve()
# By a name for the test: the expression, and the plain English for it.
PHRASES = {
    "of ours": (r"\bof ours\b", "Istio rules; rules created by istio-init; this program's"),
    "rules of others": (r"\b(rules|chains|tables|entries) of others\b", "other programs' rules"),
    "exists": (r"\bstands?\b(?! (in |up )?for\b)(?! out\b)(?<!-)", "exist, is in, comes before"),
    "told by": (r"\btold by\b", "identified by, known from"),
    "fares": (r"\bfares?\b", "is treated, goes"),
    "whoever": (r"\bwhoever\b", "the process that, any program that"),
    "has no use for": (r"\bha(ve|s) no use for\b", "does not need"),
}
# Texts of others, and the BPF source, whose lines are recorded in the compiled programs.
EXCEPT = {"LICENSE", "image/bpf/capture.bpf.c"}
# Where the article is named, and the option that numbers its steps is described.
ARTICLE = {"docs/explain.md", "docs/rules.md", "docs/draw.md"}


def texts() -> dict[str, str]:
    """Every text of the tree by its path."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    found = {}
    for name in filter(None, listed.split("\0")):
        path = ROOT / name
        if name not in EXCEPT and path.is_file() and path != THIS:
            data = path.read_bytes()
            if b"\0" not in data:
                found[name] = data.decode("utf-8", "replace")
    return found


@pytest.mark.parametrize("name", PHRASES)
def test_no_text_uses_the_phrase(name: str) -> None:
    pattern, instead = PHRASES[name]
    expression = re.compile(pattern, re.IGNORECASE)
    uses = [
        f"{path}:{number}: {line.strip()[:100]}"
        for path, text in texts().items()
        for number, line in enumerate(text.splitlines(), 1)
        if expression.search(line)
    ]
    assert uses == [], f"say: {instead}"


def test_pages_do_not_speak_of_an_article_that_they_do_not_name() -> None:
    pages = {path: text for path, text in texts().items() if path.startswith(("docs/", "README"))}
    assert [path for path, text in pages.items() if "the article" in text.lower() and path not in ARTICLE] == []
