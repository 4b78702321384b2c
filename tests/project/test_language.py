"""Phrases that no text of this project uses, each with what to say instead; names that say nothing of the value."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
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
    "into being": (r"\binto being\b", "create"),
    "at the door": (r"\bat the door\b", "at the boundary, before PREROUTING"),
    "fares apart": (r"\bfare apart\b", "are treated differently"),
}
# Likewise, in what users read, and in the package itself; tests may speak more freely.
PRODUCT = {
    "to be had": (r"\b(not|none) to be had\b", "not available, can't be read"),
    "can't be told": (r"\bcan't be told\b", "unknown"),
    "what becomes of": (r"\bwhat becomes of\b", "what happens to, the path of"),
    "made of it": (r"\bmakes of it\b", "the result of"),
    "these same": (r"\bthese same rules\b", "the same rules"),
    "something to say": (r"\bthere is to (say|know|see|draw)\b", "name the thing: remarks, facts"),
    "held against": (r"\bheld against\b", "compared with, checked for"),
    "whose it is": (r"\bwhose it is\b", "its user and group, the sender"),
    "ours": (r"(: ours,|\bnot ours,)", "an Istio rule"),
    "not harmful": (r"\bdoes no harm\b", "harmless"),
    "double negation": (r"\bis no (regular|text|file|host)\b", "is not a"),
    "taken for granted": (r"\btaken to be\b", "assumed to be"),
    "fault of its own": (r"\ba fault of the program itself\b", "internal error"),
}
# Likewise, on pages.
PAGES = {
    "nobody": (r"\b(nobody|somebody|anybody)(?!['\w])(?! user)", "no process, another program, any client"),
    "looked at": (r"\blooked at\b", "inspected, read, checked"),
}
PRODUCT_PATHS = ("istio_init/", "docs/", "deploy/", "README", "CHANGELOG", "CONTRIBUTING", "SECURITY", "RELEASING")
PAGE_PATHS = ("docs/", "README", "CHANGELOG", "CONTRIBUTING", "SECURITY", "RELEASING")
# What says nothing of the value: participles and the like. A name with a further word may have one (given_options).
UNSAYING = {
    *("asked", "found", "given", "known", "looked", "made", "said", "seen", "told", "wanted"),
    *("fares", "sight", "stands", "way"),
}
NAMED_PATHS = ("istio_init/", "image/", "scripts/", "tests/", "integration/")
# Texts of others, and the BPF source, whose lines are recorded in the compiled programs.
EXCEPT = {"LICENSE", "image/bpf/capture.bpf.c"}
# Where the article is named, and the option that numbers its steps is described.
ARTICLE = {"docs/explain.md", "docs/rules.md", "docs/draw.md"}


@cache
def texts() -> dict[str, str]:
    """Every text of the tree by its path."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    contents = {}
    for name in filter(None, listed.split("\0")):
        path = ROOT / name
        if name not in EXCEPT and path.is_file() and path != THIS:
            data = path.read_bytes()
            if b"\0" not in data:
                contents[name] = data.decode("utf-8", "replace")
    return contents


def uses(pattern: str, paths: tuple[str, ...] = ("",)) -> list[str]:
    """Every line of texts below these paths in which the expression matches, with its path and number."""
    expression = re.compile(pattern, re.IGNORECASE)
    return [
        f"{path}:{number}: {line.strip()[:100]}"
        for path, text in texts().items()
        if path.startswith(paths)
        for number, line in enumerate(text.splitlines(), 1)
        if expression.search(line)
    ]


def bound_names(text: str) -> set[tuple[int, str]]:
    """Every name that a module gives to something: variables, parameters, attributes, functions, classes."""
    names: set[tuple[int, str]] = set()
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()) | ast.arg(arg=name):
                names.add((node.lineno, name))
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                names.add((node.lineno, name))
            case ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)) | ast.ExceptHandler(name=str(name)):
                names.add((node.lineno, name))
    return names


@pytest.mark.parametrize("room", NAMED_PATHS)
def test_names_say_what_the_thing_is(room: str) -> None:
    unsaying = [
        f"{path}:{line}: {name}"
        for path, text in texts().items()
        if path.startswith(room) and (path.endswith(".py") or text.startswith("#!/usr/bin/env python3"))
        for line, name in sorted(bound_names(text))
        if name.strip("_").lower() in UNSAYING
    ]
    assert unsaying == []


@pytest.mark.parametrize("name", PHRASES)
def test_no_text_uses_the_phrase(name: str) -> None:
    pattern, instead = PHRASES[name]
    assert uses(pattern) == [], f"say: {instead}"


@pytest.mark.parametrize("name", PRODUCT)
def test_no_page_and_no_module_uses_the_phrase(name: str) -> None:
    pattern, instead = PRODUCT[name]
    assert uses(pattern, PRODUCT_PATHS) == [], f"say: {instead}"


@pytest.mark.parametrize("name", PAGES)
def test_no_page_uses_the_phrase(name: str) -> None:
    pattern, instead = PAGES[name]
    assert uses(pattern, PAGE_PATHS) == [], f"say: {instead}"


def test_pages_do_not_speak_of_an_article_that_they_do_not_name() -> None:
    pages = {path: text for path, text in texts().items() if path.startswith(("docs/", "README"))}
    assert [path for path, text in pages.items() if "the article" in text.lower() and path not in ARTICLE] == []


def test_modules_that_a_docstring_or_comment_names_exist() -> None:
    """A module was renamed, and a text still has its old name. Python's own modules are known by name."""
    paths = set(texts())
    names = {Path(path).name for path in paths} | {f"{name}.py" for name in sys.stdlib_module_names} | {"site.py"}
    missing = [
        f"{path}:{number}: {module}"
        for path, text in texts().items()
        if path.startswith("istio_init/") and path.endswith(".py")
        for number, line in enumerate(text.splitlines(), 1)
        for module in re.findall(r"(?<![\w./*])(?:\w+/)*\w+\.py\b", line)
        if (module not in names if "/" not in module else not any(f"/{each}".endswith(f"/{module}") for each in paths))
    ]
    assert missing == []
