"""The page in a real browser: it says what `explain` says, lights up what `draw` does, and can be used by anybody."""

from __future__ import annotations

import shlex
from collections import Counter
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from selenium.webdriver.common.keys import Keys

from integration.kit.browser import Browser
from integration.kit.program import ROOT
from integration.traffic.test_simulator import command_lines
from istio_init.cli.app import main
from istio_init.cli.verbs import packet_flags
from istio_init.draw.html.document import document
from istio_init.draw.html.model import PageSubject, model
from istio_init.model.extensions import Mark
from istio_init.model.rules import FAMILIES, IPV4, Chain, InInterface, Rule, Ruleset, Table, Verdict, ordered
from istio_init.model.unknown import Comment, UnknownMatch
from tests.draw.test_page_language import chinese
from tests.kit.page_cases import agrees, namespace, planned, prediction, question

if TYPE_CHECKING:
    from collections.abc import Iterator

    from istio_init.cli.verbs.subject import Subject
    from istio_init.model.rules import Family

QUIET = {"ENVOY_USER": "0"}
DUMP = ROOT / "tests" / "envoy" / "dumps" / "redirect.json"
ARTICLE = "-p 15001 -z 15006 -u 1337 -m REDIRECT -i '*' -b '*' -d 15090,15020"
TPROXY = "-u 1337 -m TPROXY -i '*' -b '*' -o 22 --redirect-dns --dns-servers 10.0.0.10,fd00::10 --drop-invalid"

# Of the packets of one page: what the scripts say of them, and what they light up of what is drawn.
ASK = """
const [model, family, cases] = arguments;
return cases.map((typed) => {
  try {
    const described = explain(model, typed, family);
    const lit = highlightsOf(model.families[parseRequest(model, typed).family ?? family]?.links ?? {}, described);
    const listed = (way) => Object.fromEntries(Object.entries(way).map(([part, keys]) => [part, [...keys]]));
    return { described, highlights: lit.map(listed) };
  } catch (error) {
    if (error instanceof Refused) {
      return null;
    }
    throw error;
  }
});
"""
# Everything in the shown picture that a packet may light up, by its key, with its classes and those of its bars.
LIT = """
const within = document.querySelector('.frame:not([hidden]) svg');
return [...within.querySelectorAll('.head, .box, .row, .end, .line, .tip')].map((each) => [
  each.dataset.key ?? each.dataset.hook, [...each.classList],
  [...each.querySelectorAll(':scope > .bar')].map((bar) => [...bar.classList]),
]);
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as started:
        yield started


@pytest.fixture
def page(tmp_path: Path) -> Path:
    return tmp_path / "page.html"


def write(page: Path, words: str) -> None:
    """What the command writes."""
    assert main(["draw", *shlex.split(words), "--format", "html", "--file", str(page)], QUIET) == 0


def matter(about: Subject) -> PageSubject:
    return PageSubject(about.options, about.rulesets, about.facts, about.envoy, about.live)


# Packets that seldom come about by chance, by their marks.
RARE = {1: (UnknownMatch("bpf", 1, b""),), 2: ()}
RARE_RULES = tuple(Rule((Mark(mark), *more), Verdict("QUEUE")) for mark, more in RARE.items())
RARE_CHAINS = ordered("mangle", {"PREROUTING": Chain("PREROUTING", RARE_RULES, "ACCEPT")})
RARE_SUBJECT = planned("-i '*'").replace(rulesets=(Ruleset(IPV4, (Table("mangle", RARE_CHAINS),)),), live=True)
RARE_QUESTION = {
    "inbound": True, "from": "", "to": "10.9.9.9", "protocol": "tcp", "interface": "", "uid": "", "gid": "",
    "connmark": "0", "state": "NEW", "reply": False,
}  # fmt: skip


def packets(seed: int) -> list[dict[str, Any]]:
    """Some packets as they are typed in."""
    chance = Random(seed)
    return [question(chance) for _ in range(8)]


def test_it_says_what_explain_says(browser: Browser, page: Path) -> None:
    """Of random packets, through random plans and through whatever a namespace may hold."""
    write(page, ARTICLE)
    browser.open(page)
    counts = Counter[str]()

    @settings(max_examples=20)
    @given(
        about=st.one_of(command_lines().map(planned), st.integers(0, 2**32).map(lambda seed: namespace(Random(seed)))),
        family=st.sampled_from(FAMILIES),
        some=st.integers(0, 2**32).map(packets),
    )
    @example(RARE_SUBJECT, IPV4, [{**RARE_QUESTION, "mark": str(mark)} for mark in (0, *RARE)])
    def compare(about: Subject, family: Family, some: list[dict[str, Any]]) -> None:
        values = {**model(matter(about)), **packet_flags.form_defaults()}
        for typed, answer in zip(some, browser.run(ASK, values, family, some), strict=True):
            expected = prediction(about, typed, family)
            assert agrees(expected, answer), (typed, expected, answer)
            counts.update([leg["end"] for leg in answer["described"]["legs"]] if answer else ["refused"])

    compare()
    assert {"queued", "undecided", "forwarded"} < counts.keys()
    assert counts.total() > 8 * 20


@pytest.mark.parametrize(
    ("options", "packet"),
    [
        (ARTICLE, "--outbound --to 10.1.2.3:443"),
        (ARTICLE, "--inbound --to [2001:db8::a]:9080"),
        (TPROXY, "--inbound --to :9080"),
        (TPROXY, "--outbound --to 10.0.0.10:53 --protocol udp"),
        (TPROXY, "--inbound --to :80 --state INVALID --mark 0x10"),
        (f"{TPROXY} --proxy-runs-as 1337", "--inbound --to :9080"),
    ],
)
def test_it_opens_with_a_packet_lit_up_as_in_the_picture(
    browser: Browser, page: Path, options: str, packet: str
) -> None:
    picture = page.with_suffix(".svg")
    write(page, f"{options} {packet}")
    assert main(["draw", *shlex.split(f"{options} {packet}"), "--file", str(picture)], QUIET) == 0
    browser.open(page)
    expected = Counter(_lit(ET.parse(picture).getroot()))  # noqa: S314 (made here)
    assert _counted(browser.run(LIT)) == expected
    assert any("hit" in classes for _, classes, _ in expected)
    assert browser.complaints() == []


def _lit(picture: ET.Element) -> Iterator[tuple[str, frozenset[str], frozenset[frozenset[str]]]]:
    """The same of a picture that `draw` makes. A line that several packets took is there for each."""
    for each in picture.iter():
        classes = frozenset(each.get("class", "").split())
        key = each.get("data-key") or each.get("data-hook")
        if key and classes & {"head", "box", "row", "end", "line", "tip"}:
            bars = (frozenset(child.get("class", "").split()) for child in each)
            yield key, classes, frozenset(bar for bar in bars if "bar" in bar)


def _counted(report: list[Any]) -> Counter[tuple[str, frozenset[str], frozenset[frozenset[str]]]]:
    """A page's elements; a line that was taken lies over the one that was not."""
    taken = {key for key, classes, _ in report if "lit" in classes}
    return Counter(
        (key, frozenset(classes) - {"lit"}, frozenset(map(frozenset, bars)))
        for key, classes, bars in report
        if "lit" in classes or not (set(classes) & {"line", "tip"} and key in taken)
    )


def test_it_is_used_with_the_keyboard_alone(browser: Browser, page: Path) -> None:
    write(page, ARTICLE)
    browser.open(page)

    def type_(*keys: str) -> str:
        """Press keys; what has the focus then."""
        browser.driver.switch_to.active_element.send_keys(*keys)
        return str(browser.run("return document.activeElement.name || document.activeElement.textContent"))

    def summary() -> str:
        return str(browser.run("return document.getElementById('summary').textContent"))

    assert type_(Keys.TAB) == "way"
    assert type_(Keys.TAB) == "from"
    assert type_(Keys.TAB) == "to"
    type_("10.1.2.3:443", Keys.TAB)
    assert type_(Keys.TAB) == "uid"
    type_("1337", Keys.ENTER)
    assert summary() == "Left alone"
    # What can't be understood is said, where it was typed, and read out; the answer to the last request is not shown.
    type_(Keys.BACKSPACE * 4, "nobody", Keys.ENTER)
    wrong = "return [document.getElementById('wrong').textContent, document.activeElement.matches('[aria-invalid]')]"
    assert browser.run(wrong) == ["nobody: not an id, or - for no socket's: use a number from 0 to 4294967294", True]
    visible = "return document.getElementById('answer').checkVisibility()"
    assert not browser.run(visible)
    assert not browser.run("return document.querySelector('.row.hit, .line.lit')")
    type_(Keys.BACKSPACE * 6, Keys.TAB)
    assert summary() == "Captured by Envoy, outbound"
    assert browser.run(visible)
    assert not browser.run("return document.querySelector('[aria-invalid]')")
    # To what comes in, and back to the other family.
    browser.run("document.querySelector('[name=way]:checked').focus()")
    type_(Keys.ARROW_RIGHT)
    assert summary() == "Captured by Envoy, inbound"
    browser.run("document.querySelector('[name=family]:checked').focus()")
    type_(Keys.ARROW_RIGHT)
    shown = "return [document.getElementById('to').value, document.querySelector('.packet').textContent]"
    assert browser.run(shown) == [":443", "tcp [2001:db8:1::7]:40000 → [2001:db8::a]:443, in eth0"]
    # An example, by its button; a picture that is too wide can be scrolled.
    examples = "[...document.querySelectorAll('.example')]"
    browser.run(f"{examples}.find((each) => each.textContent === 'Envoy calls the world').focus()")
    type_(Keys.ENTER)
    assert summary() == "Left alone"
    assert browser.run("return document.querySelector('.frame:not([hidden])').tabIndex") == 0
    assert browser.complaints() == []


def test_it_says_why_nothing_follows_from_a_port_of_the_proxys(browser: Browser, page: Path) -> None:
    write(page, f"{ARTICLE} --outbound --to 0.0.0.0:15006")
    browser.open(page)
    assert browser.run("return document.getElementById('to').value") == "0.0.0.0:15006"
    text = browser.run("return document.getElementById('legs').textContent")
    assert "tcp 127.0.0.1:40000 → 127.0.0.1:15006" in text
    assert text.endswith("or it would dial itself.")


def test_the_proxys_part_is_that_of_its_own_packet(browser: Browser, page: Path) -> None:
    """Of every other one the page says how to ask, and shows nothing that is not its own."""
    write(page, f"{ARTICLE} --pod-address 10.44.0.2 --inbound --to :9080 --envoy {DUMP}")
    browser.open(page)
    shown = "return ['lines', 'other'].map((name) => document.getElementById(`proxy-${name}`).checkVisibility())"

    def type_to(text: str) -> list[bool]:
        browser.run(f"document.getElementById('to').value = '{text}'; document.getElementById('ask').requestSubmit()")
        return [bool(each) for each in browser.run(shown)]

    assert browser.run(shown) == [True, False]
    assert type_to(":9081") == [False, True]
    command = browser.run("return document.getElementById('proxy-command').textContent")
    assert command.startswith("istio-init explain -p 15001 ")
    assert command.endswith(f" --envoy {DUMP} --inbound --to :9081")
    assert type_to("nowhere") == [False, False]
    assert type_to(":09080") == [False, False]
    assert type_to(":9080") == [True, False]
    assert browser.barriers() == []
    assert browser.complaints() == []


def test_it_speaks_chinese(browser: Browser, page: Path) -> None:
    """By its button, and back; an answer that is shown is in the same language, and the rules stay what they are."""
    write(page, f"{ARTICLE} --outbound --to 10.1.2.3:443")
    browser.open(page)
    shown = """
        const text = (selector) => document.querySelector(selector).textContent;
        return [document.documentElement.lang, document.title, text('h1'), text('#summary')];
    """
    english = browser.run(shown)
    assert english[0] == "en"
    browser.run("document.getElementById('language').click()")
    assert browser.run(shown) == ["zh", *(chinese()[each] for each in english[1:])]
    words = browser.run("return document.body.innerText")
    assert "来自应用" in words
    assert "ISTIO_OUTPUT" in words
    assert "Show its way" not in words
    browser.run("document.getElementById('to').value = ':15006'; document.getElementById('ask').requestSubmit()")
    assert browser.run("return document.querySelector('.leg h3').textContent").endswith("来自应用")
    browser.run("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    assert browser.barriers() == []
    browser.run("document.getElementById('language').click()")
    browser.run("document.getElementById('to').value = '10.1.2.3:443'; document.getElementById('ask').requestSubmit()")
    assert browser.run(shown) == english
    assert browser.complaints() == []


def test_nothing_keeps_people_from_using_it(browser: Browser, page: Path) -> None:
    """On light and on dark ground, on a wide screen and on a phone's."""
    write(page, f"{ARTICLE} --inbound --to :9080 --mark 1")
    browser.open(page)
    browser.run("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    for dark, width in ((False, 0), (True, 400)):
        browser.emulate(dark=dark, width=width)
        assert browser.barriers() == []
        assert browser.run("return document.documentElement.scrollWidth <= innerWidth")
    browser.emulate()


def test_what_others_wrote_is_text(browser: Browser, page: Path) -> None:
    nasty = '</script><script>pwned = 1</script><img src=x onerror="pwned = 1">${pwned=1}\u202e'
    rules = (
        Rule((Comment(nasty),), Verdict("")),
        Rule((InInterface('"><svg onload=pwned=1>'),), Verdict("DROP")),
        Rule((Comment("--><!--"),), Verdict("ACCEPT")),
    )
    named = (Chain("PREROUTING", rules, "ACCEPT"), Chain("<b onclick=pwned=1>", rules, None))
    chains = ordered("mangle", {chain.name: chain for chain in named})
    about = planned("-i '*'").replace(rulesets=(Ruleset(IPV4, (Table("mangle", chains),)),), live=True)
    typed = {"way": "inbound", "from": "<img src=x onerror=pwned=1>", "interface": "<b/onclick=x>"}
    page.write_text(document(matter(about), packet_flags.form_defaults(), typed, IPV4))
    browser.open(page)
    assert "<img" in browser.run("return document.getElementById('wrong').textContent")
    browser.run("document.getElementById('from').value = ''; document.getElementById('interface').value = '<b>&amp;'")
    browser.run("document.getElementById('ask').requestSubmit()")
    text = browser.run("return document.getElementById('legs').textContent")
    assert "<img src=x" in text
    assert "in <b>&amp;" in text
    assert "\u202e" not in text
    assert browser.run("return [typeof pwned, document.scripts.length, document.images.length]") == ["undefined", 2, 0]
    assert browser.complaints() == []


def test_the_browser_itself_keeps_it_from_running_or_loading_anything(browser: Browser, page: Path) -> None:
    write(page, ARTICLE)
    browser.open(page)
    assert browser.run("return performance.getEntriesByType('resource').length") == 0
    for attempt in (
        "document.body.innerHTML = '<b>x</b>'",
        "document.head.append(Object.assign(document.createElement('script'), { textContent: 'pwned = 1' }))",
        "document.body.append(Object.assign(new Image(), { src: 'http://127.0.0.1:9/x.png' }))",
        "fetch('http://127.0.0.1:9/x').catch(() => {})",
        "document.body.append(Object.assign(document.createElement('iframe'), { src: 'http://127.0.0.1:9/' }))",
    ):
        browser.run(f"try {{ {attempt} }} catch (error) {{ console.error(`${{error}}`); }}")
        assert any("violates" in each or "requires 'Trusted" in each for each in browser.complaints()), attempt
    assert browser.run("return typeof pwned") == "undefined"
