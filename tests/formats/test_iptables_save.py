"""iptables-save text: the spelling of every kind, reading it back, and what is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from istio_init.errors_rare import SaveError
from istio_init.formats.iptables_restore import parse as load
from istio_init.formats.iptables_save import dump, dump_table, rule_text
from istio_init.model.extensions import (
    CT_STATES,
    ConnMark,
    CtState,
    CtZone,
    Mark,
    Multiport,
    RestoreMark,
    SaveMark,
    SetMark,
    Tproxy,
)
from istio_init.model.rules import (
    TCP,
    UDP,
    Chain,
    Destination,
    DestinationPorts,
    InInterface,
    Jump,
    Network,
    OutInterface,
    Owner,
    PortRange,
    Protocol,
    Redirect,
    Rule,
    Ruleset,
    Source,
    SourcePorts,
    Table,
    Verdict,
    ordered,
)
from istio_init.model.unknown import Comment, UnknownMatch, UnknownTarget
from tests.kit.strategies import MATCHES, TARGETS, families, rulesets

if TYPE_CHECKING:
    from istio_init.model.rules import Family, Match, Target

HOME = Network(bytes((127, 0, 0, 1)), 32)
ANY = Network(bytes(4), 0)
RESOLVER = Network(bytes(12) + bytes((127, 0, 0, 53)), 128)
DOCUMENTATION = Network(bytes((0x20, 0x01, 0x0D, 0xB8)) + bytes(12), 29)
NOTHING = Verdict("")


def port(low: int, high: int | None = None) -> PortRange:
    return PortRange(low, low if high is None else high)


# Each as iptables-legacy-save 1.8.9 prints it; integration/kernel/test_iptables_save.py asks the program itself.
MATCH_SPELLINGS: list[tuple[Match, str]] = [
    (Source(HOME), "-s 127.0.0.1/32"),
    (Source(HOME, negated=True), "! -s 127.0.0.1/32"),
    (Source(ANY, negated=True), "! -s 0.0.0.0/0"),
    (Destination(Network(bytes((10, 0, 0, 0)), 8)), "-d 10.0.0.0/8"),
    (InInterface("eth+"), "-i eth+"),
    (OutInterface("lo", negated=True), "! -o lo"),
    (Protocol(TCP), "-p tcp"),
    (Protocol(UDP, negated=True), "! -p udp"),
    (Protocol(58), "-p ipv6-icmp"),
    (Protocol(200), "-p 200"),
    (Multiport("dports", (port(53), port(15008)), negated=True), "-m multiport ! --dports 53,15008"),
    (Multiport("sports", (port(1), port(3, 4))), "-m multiport --sports 1,3:4"),
    (Multiport("ports", (port(0),)), "-m multiport --ports 0"),
    (
        Multiport("dports", (*map(port, range(13)), port(14, 15))),
        "-m multiport --dports 0,1,2,3,4,5,6,7,8,9,10,11,12,14:15",
    ),
    (Owner("uid", 1337, 1337), "-m owner --uid-owner 1337"),
    (Owner("gid", 1, 5, negated=True), "-m owner ! --gid-owner 1-5"),
    (Owner("uid", 0, 2**32 - 2), "-m owner --uid-owner 0-4294967294"),
    (Mark(1337), "-m mark --mark 0x539"),
    (Mark(1, 0xFF, negated=True), "-m mark ! --mark 0x1/0xff"),
    (Mark(0, 0), "-m mark --mark 0x0/0x0"),
    (ConnMark(1337), "-m connmark --mark 0x539"),
    (ConnMark(1, 0xFF, negated=True), "-m connmark ! --mark 0x1/0xff"),
    (CtState(("RELATED", "ESTABLISHED")), "-m conntrack --ctstate RELATED,ESTABLISHED"),
    (CtState(CT_STATES), "-m conntrack --ctstate INVALID,NEW,RELATED,ESTABLISHED,UNTRACKED,SNAT,DNAT"),
    (CtState(("INVALID",), negated=True), "-m conntrack ! --ctstate INVALID"),
    (Comment("plain-Word_1"), "-m comment --comment plain-Word_1"),
    (Comment("two words"), '-m comment --comment "two words"'),
    (Comment("quote \" back \\ it's"), '-m comment --comment "quote \\" back \\\\ it\\\'s"'),
    (Comment(""), '-m comment --comment ""'),
    (Comment("!"), '-m comment --comment "!"'),
    (Comment("ümlaut\ttab"), '-m comment --comment "ümlaut\ttab"'),
]

TARGET_SPELLINGS: list[tuple[Target, str]] = [
    (Verdict("ACCEPT"), "-j ACCEPT"),
    (Verdict("DROP"), "-j DROP"),
    (Verdict("RETURN"), "-j RETURN"),
    (Verdict("QUEUE"), "-j QUEUE"),
    (NOTHING, ""),
    (Jump("ISTIO_OUTPUT"), "-j ISTIO_OUTPUT"),
    (Jump("ISTIO_OUTPUT", goto=True), "-g ISTIO_OUTPUT"),
    (Redirect(port(15001)), "-j REDIRECT --to-ports 15001"),
    (Redirect(port(15001, 15003)), "-j REDIRECT --to-ports 15001-15003"),
    (
        Tproxy(15006, bytes(4), 1337),
        "-j TPROXY --on-port 15006 --on-ip 0.0.0.0 --tproxy-mark 0x539/0xffffffff",
    ),
    (Tproxy(15006, HOME.address, 1, 0xFF), "-j TPROXY --on-port 15006 --on-ip 127.0.0.1 --tproxy-mark 0x1/0xff"),
    (SetMark(1337), "-j MARK --set-xmark 0x539/0xffffffff"),
    (SetMark(0, 0xFFFFFF00), "-j MARK --set-xmark 0x0/0xffffff00"),
    (SaveMark(), "-j CONNMARK --save-mark --nfmask 0xffffffff --ctmask 0xffffffff"),
    (RestoreMark(0xFF, 0xF0), "-j CONNMARK --restore-mark --nfmask 0xff --ctmask 0xf0"),
    (CtZone(1), "-j CT --zone 1"),
    (CtZone(0), "-j CT"),
]

RULE_SPELLINGS: list[tuple[Rule, str]] = [
    (
        Rule(
            (
                Destination(HOME, negated=True),
                OutInterface("lo"),
                Protocol(TCP),
                DestinationPorts(port(15008), negated=True),
                Owner("uid", 1337, 1337),
            ),
            Jump("ISTIO_OUTPUT"),
        ),
        "! -d 127.0.0.1/32 -o lo -p tcp -m tcp ! --dport 15008 -m owner --uid-owner 1337 -j ISTIO_OUTPUT",
    ),
    (
        Rule((Protocol(UDP), SourcePorts(port(53)), DestinationPorts(port(1, 65535), negated=True)), CtZone(2)),
        "-p udp -m udp --sport 53 ! --dport 1:65535 -j CT --zone 2",
    ),
    (
        Rule((Protocol(TCP), Comment("x"), DestinationPorts(port(5))), Verdict("ACCEPT")),
        "-p tcp -m comment --comment x -m tcp --dport 5 -j ACCEPT",
    ),
    (
        Rule((Owner("uid", 5, 5), Owner("gid", 6, 6)), Verdict("RETURN")),
        "-m owner --uid-owner 5 -m owner --gid-owner 6 -j RETURN",
    ),
]

IPV6_SPELLINGS: list[tuple[Rule, str]] = [
    (Rule((Source(RESOLVER),), NOTHING), "-s ::127.0.0.53/128"),
    (Rule((Destination(DOCUMENTATION, negated=True),), NOTHING), "! -d 2001:db8::/29"),
    (Rule((Source(Network(bytes(16), 0), negated=True),), NOTHING), "! -s ::/0"),
    (
        Rule((Protocol(TCP),), Tproxy(15006, bytes(16), 1337)),
        "-p tcp -j TPROXY --on-port 15006 --on-ip :: --tproxy-mark 0x539/0xffffffff",
    ),
]


def spelling(rule: Rule, text: str) -> tuple[Rule, str]:
    """The rule and its text; with -p tcp before it where iptables takes the match or target for nothing else."""
    if any(isinstance(part, Multiport | Redirect | Tproxy) for part in (*rule.matches, rule.target)):
        return rule.replace(matches=(Protocol(TCP), *rule.matches)), f"-p tcp {text}"
    return rule, text


IPV4_SPELLINGS = [
    *(spelling(Rule((match,), NOTHING), text) for match, text in MATCH_SPELLINGS),
    *(spelling(Rule((), target), text) for target, text in TARGET_SPELLINGS),
    *RULE_SPELLINGS,
]
SPELLINGS: list[tuple[Family, Rule, str]] = [
    *(("ipv4", rule, text) for rule, text in IPV4_SPELLINGS),
    *(("ipv6", rule, text) for rule, text in IPV6_SPELLINGS),
]


def wrapped(rule: str) -> str:
    """A save whose only rule is this."""
    return f"*mangle\n:OUTPUT ACCEPT [0:0]\n:ISTIO_OUTPUT - [0:0]\n-A OUTPUT {rule}\nCOMMIT\n"


def loaded(rule: str, family: Family = "ipv4") -> Rule:
    """The value of one rule's text."""
    [table] = load(wrapped(rule), family).tables
    chain = table.chain("OUTPUT")
    assert chain
    [only] = chain.rules
    return only


@pytest.mark.parametrize(("family", "rule", "text"), SPELLINGS, ids=[text for _, _, text in SPELLINGS])
def test_spelling(family: Family, rule: Rule, text: str) -> None:
    assert rule_text(rule) == text
    assert loaded(text, family) == rule


def test_every_kind_is_spelled() -> None:
    rules = [rule for _, rule, _ in SPELLINGS]
    spelled = {type(match) for rule in rules for match in rule.matches} | {type(rule.target) for rule in rules}
    assert spelled == {*MATCHES, *TARGETS} - {UnknownMatch, UnknownTarget}


@pytest.mark.parametrize(
    "match",
    [
        Source(ANY),
        Destination(ANY),
        InInterface("+"),
        OutInterface("+", negated=True),
        Protocol(0),
    ],
)
def test_what_every_packet_passes_is_not_printed(match: Match) -> None:
    assert rule_text(Rule((match,), Verdict("ACCEPT"))) == "-j ACCEPT"


def test_unknown_extensions_are_shown_and_not_loadable() -> None:
    rule = Rule((UnknownMatch("string", 1, bytes(40)),), UnknownTarget("LOG", 0, bytes(32)))
    assert rule_text(rule) == "-m string [unknown: 40 bytes] -j LOG [unknown: 32 bytes]"
    with pytest.raises(SaveError, match="string"):
        loaded(rule_text(rule))


@pytest.mark.parametrize("protocol", [(), (Protocol(132),), (Protocol(TCP, negated=True),)])
def test_ports_need_their_protocol(protocol: tuple[Match, ...]) -> None:
    with pytest.raises(SaveError, match="-p tcp or -p udp"):
        rule_text(Rule((*protocol, DestinationPorts(port(80))), NOTHING))


def test_table_text() -> None:
    chains = {
        "OUTPUT": Chain("OUTPUT", (Rule((), Jump("ISTIO_OUTPUT")),), "DROP"),
        "ISTIO_OUTPUT": Chain("ISTIO_OUTPUT", (Rule((), NOTHING),)),
    }
    table = Table("filter", ordered("filter", chains))
    text = (
        "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT DROP [0:0]\n:ISTIO_OUTPUT - [0:0]\n"
        "-A OUTPUT -j ISTIO_OUTPUT\n-A ISTIO_OUTPUT\nCOMMIT\n"
    )
    assert dump_table(table) == text
    empty = Table("raw", ordered("raw", {}))
    assert dump(Ruleset("ipv4", (empty, table))) == text
    assert load(text, "ipv4") == Ruleset("ipv4", (table,))


@given(family=families, data=st.data())
def test_what_is_dumped_loads_as_the_same_value(family: Family, data: st.DataObject) -> None:
    ruleset = data.draw(rulesets(family))
    assert load(dump(ruleset), family) == ruleset


def test_what_real_saves_have_beside_the_rules() -> None:
    text = (
        "# Generated by iptables-save v1.8.9 on Mon Nov 23 06:20:51 2026\n*raw\n:OUTPUT ACCEPT [12:3456]\nCOMMIT\n"
        "# Completed\n\n*mangle\n:FOO - [0:0]\n[7:890] -A FOO -p tcp\nCOMMIT\n# Completed on Mon Nov 23 06:20:51 2026\n"
    )
    raw, mangle = load(text, "ipv4").tables
    assert raw == Table("raw", ordered("raw", {}))
    assert mangle.chain("FOO") == Chain("FOO", (Rule((Protocol(TCP),), NOTHING),))


def test_tables_come_in_a_packets_order() -> None:
    empty = "*filter\nCOMMIT\n*nat\nCOMMIT\n*mangle\nCOMMIT\n*raw\nCOMMIT\n"
    assert [table.name for table in load(empty, "ipv4").tables] == ["raw", "mangle", "nat", "filter"]


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("-p tcp -d 10.1.2.3/8 -s 127.0.0.1", "-s 127.0.0.1/32 -d 10.0.0.0/8 -p tcp"),
        ("-m tcp --dport 5 --sport 6 -p tcp", "-p tcp -m tcp --sport 6 --dport 5"),
        ("-m conntrack --ctstate NEW,INVALID,NEW", "-m conntrack --ctstate INVALID,NEW"),
        ("-m owner --uid-owner 5 --gid-owner 6", "-m owner --uid-owner 5 -m owner --gid-owner 6"),
        ("\t-j  ACCEPT ", "-j ACCEPT"),
    ],
)
def test_what_means_the_same_is_the_same_value(text: str, same: str) -> None:
    assert rule_text(loaded(text)) == same


BAD_RULES = [
    ("-x", "'-x': unknown option"),
    ("--dport 5", "'--dport': unknown option"),
    ("-s", "'-s': an address is missing"),
    ("-s 1.2.3", "'1.2.3': not an IP address"),
    ("-s ::1", "'::1': not an address of ipv4"),
    ("-s 10.0.0.0/255.0.255.0", "255.0.255.0"),
    ("-s 10.0.0.0/33", "'10.0.0.0/33'"),
    ("-s 10.0.0.0/8 -s 11.0.0.0/8", "'-s': is given twice"),
    ("-s 0.0.0.0/0", "'-s': matches every packet"),
    ("-i +", "'-i': matches every packet"),
    ("! -o +", "'-o': matches every packet"),
    ("-i abcdefghijklmnop", "at most 15 bytes"),
    ("-p 256", "'256': not a protocol"),
    ("-p nonesuch", "'nonesuch': not a protocol"),
    ("-m tcp", "'tcp': unknown match, or one whose options are missing"),
    ("-m string --string x", "not known of -m 'string'"),
    ("-m tcp --dport 80", "'tcp': needs -p tcp"),
    ("-p udp -m tcp --dport 80", "'tcp': needs -p tcp"),
    ("! -p tcp -m tcp --dport 80", "'tcp': needs -p tcp"),
    ("-p tcp -m tcp --dport 65536", "'65536': not a port"),
    ("-p tcp -m tcp --dport 5:4", "ends before it begins"),
    ("-p tcp -m tcp --dport 5:", "'': not a port"),
    ("-p tcp -m tcp --dport 5 --dport 6", "'--dport': is given twice"),
    ("-p tcp -m tcp --dport ٣", "not a port"),
    ("-p tcp -m multiport --dports 1,2,3,4,5,6,7,8,9,10,11,12,13,14,15:16", "at most 15 ports"),
    ("-m owner --uid-owner root", "'root': not an id"),
    ("-m owner --uid-owner 5-", "'5-': not a range"),
    ("-m owner --uid-owner 5-4", "'5-4': not a range"),
    ("-m owner --uid-owner 4294967296", "'4294967296': not an id"),
    ("-m mark --mark 5", "'5': marks and masks"),
    ("-m mark --mark 0x100000000", "marks and masks"),
    ("-m mark --mark 0x1/", "marks and masks"),
    ('-m mark --mark "" 0x5', "marks and masks"),
    ("-m conntrack --ctstate NONE", "'NONE': states are"),
    ("-m comment ! --comment x", "not known of -m 'comment'"),
    (f"-m comment --comment {'x' * 256}", "at most 255 bytes"),
    ('-m comment --comment "x', "a quote is not closed"),
    ("! -m mark --mark 0x1", "'-m': unknown option"),
    ("!", "'!': an option is missing"),
    ("-j", "'-j': a target is missing"),
    ("-j NONESUCH", "'NONESUCH': unknown target"),
    ("-g NONESUCH", "'NONESUCH': no such chain"),
    ("-j OUTPUT", "'OUTPUT': unknown target"),
    ("-j ACCEPT extra", "'extra': unexpected at the end"),
    ("-j REDIRECT", "'REDIRECT': --to-ports is missing"),
    ("-j REDIRECT --to-ports 5 --random", "'--random': unexpected at the end"),
    ("-j MARK --set-mark 5", "'--set-mark': --set-xmark is required here"),
    ("-j CONNMARK --set-mark 0x5", "'--set-mark': only"),
    ("-j TPROXY --on-port 5 --on-ip 10.0.0.0/8 --tproxy-mark 0x1/0x1", "use an address"),
    ("-j CT --zone 65536", "'65536': not a zone"),
    ("-j CT --notrack", "'--notrack': --zone is required here"),
]


@pytest.mark.parametrize(("rule", "why"), BAD_RULES)
def test_a_rule_that_is_not_understood_is_refused(rule: str, why: str) -> None:
    with pytest.raises(SaveError) as raised:
        loaded(rule)
    message = str(raised.value)
    assert message.startswith("line 4: ")
    assert why in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("-A OUTPUT\n", "line 1: '-A': expected a table"),
        ("*nonesuch\nCOMMIT\n", "line 1: '*nonesuch': expected a table"),
        ("*nat\nCOMMIT\n*nat\nCOMMIT\n", "line 3: '*nat': expected a table"),
        ("*nat extra\nCOMMIT\n", "line 1: 'extra'"),
        ("*nat\n", "line 1: '*nat': no COMMIT"),
        ("*nat\nCOMMIT extra\n", "line 2: 'extra'"),
        ("*nat\nfoo\nCOMMIT\n", "line 2: 'foo': a rule (-A), a chain (:) or COMMIT expected"),
        ("*nat\n-A\nCOMMIT\n", "line 2: '-A': a chain is missing"),
        ("*nat\n-A FOO\nCOMMIT\n", "line 2: 'FOO': no such chain"),
        ("*nat\n: - [0:0]\nCOMMIT\n", "line 2: '': a chain's name"),
        ("*nat\n:-FOO - [0:0]\nCOMMIT\n", "line 2: '-FOO': a chain's name"),
        (f"*nat\n:{'x' * 29} -\nCOMMIT\n", "a chain's name has 1 to 28 bytes"),
        ("*nat\n:FOO - [0:0]\n:FOO - [0:0]\nCOMMIT\n", "line 3: ':FOO': the chain is declared twice"),
        ("*nat\n:FOO ACCEPT [0:0]\nCOMMIT\n", "line 2: 'ACCEPT': the policy of 'FOO' in nat is -"),
        ("*nat\n:F\x10O ACCEPT [0:0]\nCOMMIT\n", r"line 2: 'ACCEPT': the policy of 'F\x10O' in nat is -"),
        ("*nat\n:OUTPUT - [0:0]\nCOMMIT\n", "line 2: '-': the policy of 'OUTPUT' in nat is ACCEPT or DROP"),
        ("*nat\n:OUTPUT\nCOMMIT\n", "line 2: ':OUTPUT': a policy is missing"),
        ("*nat\n:OUTPUT ACCEPT [0:x]\nCOMMIT\n", "line 2: '[0:x]': counters are"),
        ("*nat\n:FOO - [0:0]\n[1:] -A FOO\nCOMMIT\n", "line 3: '[1:]': counters are"),
        ("*nat\n:FOO - [0:0]\n[1:2]\nCOMMIT\n", "line 3: '[1:2]': -A is missing"),
    ],
)
def test_a_table_that_is_not_understood_is_refused(text: str, why: str) -> None:
    with pytest.raises(SaveError) as raised:
        load(text, "ipv4")
    assert why in str(raised.value)


def read(text: str, family: Family) -> None:
    """Load text that may be anything: a ruleset, which is then stable, or one line of complaint."""
    complaint = ""
    try:
        ruleset = load(text, family)
    except SaveError as error:
        complaint = str(error)
    else:
        assert load(dump(ruleset), family) == Ruleset(family, tuple(t for t in ruleset.tables if _holds(t)))
    assert "\n" not in complaint


def _holds(table: Table) -> bool:
    return any(chain.rules or chain.policy != "ACCEPT" for chain in table.chains)


@given(family=families, text=st.text())
def test_any_text_is_read_or_refused(family: Family, text: str) -> None:
    read(text, family)


WORDS = sorted({word for _, _, text in SPELLINGS for word in text.split()} | {"!", '"', "\\", "[0:0]", "FOO", "\0", ""})


@given(family=families, words=st.lists(st.sampled_from(WORDS), max_size=12))
def test_any_words_are_read_or_refused(family: Family, words: list[str]) -> None:
    read(wrapped(" ".join(words)), family)


@given(family=families, data=st.data())
def test_damaged_text_is_read_or_refused(family: Family, data: st.DataObject) -> None:
    text = dump(data.draw(rulesets(family)))
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(len(text), start + 5)))
    read(text[:start] + data.draw(st.text(max_size=3)) + text[end:], family)
