"""The page as text: what it holds, that nothing in it is loaded or runs but its own, that its colours can be read.

integration/draw/test_html.py opens it in a browser.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shlex
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from istio_init.cli.app import main
from istio_init.draw.html.document import SCRIPTS
from istio_init.draw.svg import DARK, LEGS, LIGHT
from tests.kit.packets import ARTICLE, Sidecar
from tests.planning.cases import CASES, argv

QUIET = {"ENVOY_USER": "0"}
# Elements without an end.
VOID = {"meta", "input"}
CLOSED = {"rect", "circle", "path", "polyline"}


class Parsed(HTMLParser):
    """A page's elements, their texts and attributes; what is opened is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Open it, unless it has no end."""
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """One of the picture's."""
        assert tag in CLOSED
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        """Close what was opened last."""
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        """A text of what is open."""
        if self.open:
            self.texts.setdefault(self.open[-1], []).append(data)

    def all(self, name: str) -> list[str]:
        """The values of an attribute."""
        return [attributes[name] for _, attributes in self.elements if name in attributes]


def written(capsys: pytest.CaptureFixture[str], words: str) -> tuple[str, Parsed]:
    assert main(["draw", *shlex.split(words), "--format", "html"], QUIET) == 0
    text = capsys.readouterr().out
    return text, Parsed(text)


def model(parsed: Parsed) -> Any:  # noqa: ANN401 (JSON)
    [text] = [text for text in parsed.texts["script"] if text.startswith("{")]
    return json.loads(text)


@pytest.mark.parametrize("name", CASES)
def test_every_case_has_a_page_with_all_its_rules(capsys: pytest.CaptureFixture[str], name: str) -> None:
    words = shlex.join(argv(name))
    _, parsed = written(capsys, words)
    report = [attributes["data-key"] for tag, attributes in parsed.elements if tag == "li" and "data-key" in attributes]
    plan = Sidecar(words).plan
    for ruleset in plan.rulesets:
        tables = model(parsed)["families"][ruleset.family]["tables"]
        rules = {
            f"{table['name']}/{chain['name']}/{number}": rule["text"]
            for table in tables for chain in table["chains"] for number, rule in enumerate(chain["rules"], 1)
        }  # fmt: skip
        assert rules
        assert rules.keys() <= set(report)
        assert set(rules.values()) <= set(parsed.texts["code"])


def test_the_nine_rules_come_first_with_purpose_steps_and_origin(capsys: pytest.CaptureFixture[str]) -> None:
    text, parsed = written(capsys, f"{ARTICLE} --no-enable-ipv6")
    numbers = [text for text in parsed.texts["b"] if text.isdigit()]
    assert numbers[:9] == list("123456789")
    entry = text.partition('<li data-key="nat/ISTIO_OUTPUT/9">')[2].partition("</li>")[0]
    words = " ".join(unescape(re.sub("<[^>]*>", " ", entry)).split())
    assert words == (
        "9 all other outbound traffic goes to Envoy's outbound listener -j ISTIO_REDIRECT ISTIO_OUTPUT rule 9 · "
        "the article's steps 10 to 11 · made by -i · set by traffic.sidecar.istio.io/includeOutboundIPRanges"
    )
    assert "There are no rules for IPv6." in text


def test_nothing_is_loaded_and_nothing_runs_but_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    _, parsed = written(capsys, ARTICLE)
    assert not {"src", "href", "style", "action", "srcset"} & {name for _, each in parsed.elements for name in each}
    assert not [name for _, each in parsed.elements for name in each if name.startswith("on")]
    policy = next(each["content"] for _, each in parsed.elements if "http-equiv" in each)
    [sheet] = parsed.texts["style"]
    [script] = [text for text in parsed.texts["script"] if not text.startswith("{")]
    allowed = {f"{kind}-src 'sha256-{digest(text)}'" for kind, text in (("style", sheet), ("script", script))}
    rest = {"default-src 'none'", "base-uri 'none'", "form-action 'none'", "require-trusted-types-for 'script'"}
    assert set(policy.split("; ")) == allowed | rest
    assert "url(" not in sheet
    assert "@import" not in sheet


def digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def test_everything_that_is_typed_into_has_a_label_and_every_name_is_there_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, parsed = written(capsys, ARTICLE)
    ids = parsed.all("id")
    assert len(ids) == len(set(ids))
    for name in ("for", "aria-describedby", "aria-labelledby", "list"):
        assert set(parsed.all(name)) <= set(ids)
    typed = [each for tag, each in parsed.elements if tag in {"input", "select"} and each.get("type") is None]
    assert {each["id"] for each in typed} == set(parsed.all("for"))


def test_the_packet_that_is_asked_about_is_typed_in(capsys: pytest.CaptureFixture[str]) -> None:
    question = "--outbound --to 10.1.2.3:443 --uid 1337 --mark 16 --state related --reply"
    _, parsed = written(capsys, f"{ARTICLE} {question} --proxy-runs-as 5:6")
    report = model(parsed)
    assert report["typed"] == {
        "way": "outbound", "from": "", "to": "10.1.2.3:443", "protocol": "tcp", "interface": "", "uid": "1337",
        "gid": "", "mark": "0x10", "connmark": "0", "state": "RELATED", "reply": True,
    }  # fmt: skip
    assert (report["envoy"]["uid"], report["envoy"]["gid"], report["family"]) == (5, 6, "ipv4")
    assert model(written(capsys, f"{ARTICLE} --inbound --to [2001:db8::9]:1")[1])["family"] == "ipv6"


def test_every_script_is_in_the_page() -> None:
    directory = Path(__file__).parents[2] / "istio_init" / "draw" / "html"
    assert {path.stem for path in directory.glob("*.js")} == set(SCRIPTS)


def luminance(colour: tuple[float, ...]) -> float:
    """WCAG 2.2, relative luminance."""
    red, green, blue = (each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in colour)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    lower, higher = sorted((luminance(one), luminance(other)))
    return (higher + 0.05) / (lower + 0.05)


@pytest.mark.parametrize("palette", [LIGHT, DARK], ids=["light", "dark"])
def test_everything_can_be_read(palette: dict[str, str]) -> None:
    """4.5 to 1 between a text and its ground, as WCAG 2.2 wants it (1.4.3, AA), also in a row that is lit up."""
    colours = {name: tuple(int(value[at : at + 2], 16) / 255 for at in (1, 3, 5)) for name, value in palette.items()}
    grounds = [colours[name] for name in ("ground", "band", "box")]
    for leg in range(1, LEGS + 1):
        leg_, box = colours[f"leg-{leg}"], colours["box"]
        grounds.append(tuple(0.14 * one + 0.86 * other for one, other in zip(leg_, box, strict=True)))
        assert contrast(leg_, colours["ground"]) >= 4.5
    for name in ("text", "dim", "envoy", "alone", "dropped", "change"):
        for ground in grounds:
            assert contrast(colours[name], ground) >= 4.5, name
    assert contrast(colours["on-nine"], colours["nine"]) >= 4.5
    assert contrast(colours["ground"], colours["dim"]) >= 4.5
    assert contrast(colours["leg-1"], colours["band"]) >= 4.5
