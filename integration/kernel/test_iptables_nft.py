"""iptables-nft's tables in the real kernel: what its own program says of our rules, and others' rules among them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
from typing import TYPE_CHECKING

import pytest

from integration.kit.capabilities import without
from integration.kit.namespace import Namespace
from integration.kit.program import completed, existing, refuse, routing, start, succeed, tables
from integration.kit.tracing import traced
from istio_init.errors import KernelError
from istio_init.formats.iptables_restore import parse as load
from istio_init.kernel.netlink.channel import attributes
from istio_init.kernel.netlink.nfnetlink import FAMILIES as NUMBERS
from istio_init.kernel.netlink.nfnetlink import HEAD, NfnetlinkChannel
from istio_init.kernel.nft.compat import IptablesNft
from istio_init.kernel.nft.expressions import COMPAT, EXPRESSIONS
from istio_init.kernel.nft.native import Nftables
from istio_init.model.compare import TableChange
from istio_init.model.rules import (
    FAMILIES,
    IPV4,
    IPV6,
    Chain,
    Destination,
    Jump,
    Network,
    Rule,
    Ruleset,
    Run,
    Table,
    Verdict,
    ordered,
)
from istio_init.model.unknown import UnknownTarget
from tests.planning.cases import CASES, GOLDEN, argv

if TYPE_CHECKING:
    from istio_init.model.rules import Family

NFT = ["--force-iptables-binary", "nft"]
TPROXY = [*argv("article-tproxy"), *NFT]
REDIRECT = [*argv("article-ipv6"), *NFT]
SAVE = {IPV4: "iptables-nft-save", IPV6: "ip6tables-nft-save"}
RESTORE = {IPV4: "iptables-nft-restore", IPV6: "ip6tables-nft-restore"}

# Other programs' rules: by expressions and extensions that we model and that we don't, before, between and after ours.
CANARIES = {
    IPV4: """\
*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT DROP [0:0]
:POSTROUTING ACCEPT [0:0]
:MINE - [0:0]
-A PREROUTING -p tcp -m tcp --dport 9999 -j MINE
-A OUTPUT -d 10.32.0.0/11 ! -o eth+ -m limit --limit 5/min -j RETURN
-A OUTPUT -p udp -m udp --sport 5:10 -m comment --comment "not ours" -j MINE
-A POSTROUTING -s 10.0.0.0/8 -j MASQUERADE
-A MINE -p icmp -m icmp --icmp-type 8 -j DNAT --to-destination 10.0.0.1
COMMIT
*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
-A INPUT -m state --state NEW -m recent --set --name x --mask 255.255.255.255 --rsource -j DROP
COMMIT
""",
    IPV6: """\
*mangle
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
-A OUTPUT ! -s fd00::1/128 -j MARK --set-xmark 0x7/0xff
-A POSTROUTING -d fd00::/9 -p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu
COMMIT
""",
}


def saved(namespace: Namespace) -> dict[Family, dict[str, str]]:
    """What iptables-nft's own save says, by family and table."""
    return {family: tables(namespace.run(SAVE[family])) for family in FAMILIES}


def version(namespace: Namespace) -> tuple[int, ...]:
    """The version of this machine's iptables-nft."""
    match = re.search(r"v(\d+)\.(\d+)\.(\d+)", namespace.run("iptables-nft", "--version"))
    assert match
    return tuple(map(int, match.groups()))


def golden(name: str) -> dict[Family, str]:
    """A case's text by family."""
    first, _, second = (GOLDEN / f"{name}.txt").read_text().partition("# IPv6: for ip6tables-restore\n")
    return {IPV4: first, IPV6: second}


def messages(namespace: Namespace) -> list[tuple[bytes, ...]]:
    """Every rule that is in iptables-nft's tables: what it does, as the kernel hands it out."""

    def read() -> list[tuple[bytes, ...]]:
        with NfnetlinkChannel() as channel:
            return [
                (table.encode(), *(attributes(data[HEAD.size :]).get(kind, b"") for kind in (2, EXPRESSIONS, COMPAT)))
                for number in NUMBERS.values()
                for table in ("raw", "mangle", "nat")
                if (number, table) in channel.tables()
                for data in channel.rules(number, table)
            ]

    return namespace.inside(read)


@pytest.mark.parametrize("name", CASES)
def test_case(namespace: Namespace, name: str) -> None:
    """The golden text is what iptables-nft saves; a second run writes nothing; cleaning up leaves nothing."""
    empty = routing(namespace)
    succeed(namespace, *argv(name), *NFT)
    assert saved(namespace) == {family: tables(text) for family, text in golden(name).items()}
    assert not any(existing(namespace, family) for family in FAMILIES)
    before = namespace.run("nft", "-a", "list", "ruleset")
    assert "in place, nothing written" in succeed(namespace, *argv(name), *NFT)
    assert namespace.run("nft", "-a", "list", "ruleset") == before
    succeed(namespace, "--cleanup-only", *NFT)
    assert namespace.run("nft", "list", "ruleset") == ""
    assert not any(existing(namespace, family) for family in FAMILIES)
    succeed(namespace, *argv(name), "--cleanup-only", *NFT)
    assert routing(namespace) == empty


@pytest.mark.parametrize("name", CASES)
def test_rules_are_those_that_iptables_nft_restore_writes(namespace: Namespace, name: str) -> None:
    """To the byte, in the kernel, of iptables-nft up to 1.8.9; and what any of them wrote is the plan in place."""
    succeed(namespace, *argv(name), *NFT)
    with Namespace() as other:
        for family, text in golden(name).items():
            other.run(RESTORE[family], text=text)
            for line in text.splitlines():
                if line.startswith("#"):
                    other.run(*line[1:].split())
        if version(namespace) < (1, 8, 10):
            assert messages(namespace) == messages(other)
        assert saved(namespace) == saved(other)
        assert "in place, nothing written" in succeed(other, *argv(name), *NFT)


def plant(namespace: Namespace) -> None:
    """Put the canaries there."""
    for family, text in CANARIES.items():
        namespace.run(RESTORE[family], text=text)


def test_others_rules_stay_where_they_are(namespace: Namespace) -> None:
    """Ours come and go between them; their handles, which a rewrite would change, stay."""
    plant(namespace)
    before = saved(namespace)
    handles = set(re.findall(r"# handle \d+$", namespace.run("nft", "-a", "list", "ruleset"), re.MULTILINE))
    for words in (TPROXY, [*REDIRECT, "-k", "eth9", "--reconcile"], [*TPROXY, "-c", "eth9", "--reconcile"]):
        succeed(namespace, *words)
        standing = saved(namespace)
        for family, actual in before.items():
            for table, text in actual.items():
                ours = standing[family][table].splitlines()
                assert [line for line in ours if line in text.splitlines()] == text.splitlines()
        assert handles <= set(re.findall(r"# handle \d+$", namespace.run("nft", "-a", "list", "ruleset"), re.MULTILINE))
    succeed(namespace, "--cleanup-only", *NFT)
    assert saved(namespace) == before


def test_inserted_rules_come_first_and_appended_ones_keep_their_place(namespace: Namespace) -> None:
    namespace.run("iptables-nft", "-t", "nat", "-A", "PREROUTING", "-s", "10.0.0.1", "-j", "RETURN")
    words = [*argv("kubevirt-all"), *NFT]
    succeed(namespace, *words)
    namespace.run("iptables-nft", "-t", "nat", "-A", "PREROUTING", "-s", "10.0.0.2", "-j", "RETURN")

    def chain() -> list[str]:
        return re.findall(r"-A PREROUTING (.*)", namespace.run(SAVE[IPV4], "-t", "nat"))

    desired = [
        *("-i net1 -j ISTIO_REDIRECT", "-i net0 -j ISTIO_REDIRECT", "-i net1 -j RETURN", "-i net0 -j RETURN"),
        *("-s 10.0.0.1/32 -j RETURN", "-i eth9 -j RETURN", "-p tcp -j ISTIO_INBOUND", "-s 10.0.0.2/32 -j RETURN"),
    ]
    assert chain() == desired
    succeed(namespace, *words, "--force-apply")
    assert chain() == desired


def test_iptables_nft_edits_our_rules(namespace: Namespace) -> None:
    """It checks, deletes and inserts among them; we say so, and mend it."""
    succeed(namespace, *TPROXY)
    before = saved(namespace)
    for family, program in ((IPV4, "iptables-nft"), (IPV6, "ip6tables-nft")):
        for table, text in before[family].items():
            for rule in re.findall(r"^-A (.*)$", text, re.MULTILINE):
                namespace.run(program, "-t", table, "-C", *rule.split())
    namespace.run(
        "iptables-nft", "-t", "nat", "-D", "ISTIO_OUTPUT", "-m", "owner", "--uid-owner", "1337", "-j", "RETURN"
    )
    namespace.run("iptables-nft", "-t", "mangle", "-I", "ISTIO_INBOUND", "-p", "udp", "-j", "ACCEPT")
    message = refuse(namespace, *TPROXY)
    assert "ipv4 nat ISTIO_OUTPUT rule 4 missing: -m owner --uid-owner 1337 -j RETURN" in message
    assert "ipv4 mangle ISTIO_INBOUND rule 1 unexpected: -p udp -j ACCEPT" in message
    succeed(namespace, *TPROXY, "--reconcile")
    assert saved(namespace) == before


def test_a_rule_of_nft_among_ours_is_seen(namespace: Namespace) -> None:
    """One that iptables-nft can't read, and so does not list."""
    succeed(namespace, *REDIRECT)
    before = saved(namespace)
    namespace.run("nft", "insert", "rule", "ip", "nat", "ISTIO_OUTPUT", "tcp", "dport", "{ 80, 443 }", "return")
    message = refuse(namespace, *REDIRECT)
    assert "ipv4 nat ISTIO_OUTPUT rule 1 unexpected: -p tcp -m nf_tables payload lookup [unknown: " in message
    succeed(namespace, *REDIRECT, "--reconcile")
    assert saved(namespace) == before


@pytest.mark.parametrize("family", FAMILIES)
def test_what_iptables_nft_wrote_is_read_as_it_saves_it(namespace: Namespace, family: Family) -> None:
    """The canaries, read: as many rules as it lists, those that we model as save.load reads them."""
    plant(namespace)
    read = namespace.inside(lambda: IptablesNft().read(family))
    for table in read.tables:
        text = saved(namespace)[family][table.name]
        listed = re.findall(r"^-A .*$", text, re.MULTILINE)
        assert sum(len(chain.rules) for chain in table.chains) == len(listed)
    recorded = [line for line in CANARIES[IPV4].splitlines() if "--dport 9999" in line or "--comment" in line]
    if family == IPV4:
        nat = read.table("nat")
        assert nat is not None
        text = "\n".join(
            ["*nat", ":PREROUTING ACCEPT [0:0]", ":OUTPUT ACCEPT [0:0]", ":MINE - [0:0]", *recorded, "COMMIT\n"]
        )
        desired = load(text, IPV4).tables[0]
        for name, number in (("PREROUTING", 0), ("OUTPUT", 1)):
            actual, expected = nat.chain(name), desired.chain(name)
            assert actual is not None
            assert expected is not None
            assert actual.rules[number] == expected.rules[0]


def nat(*rules: Rule) -> Table:
    """A nat table with these rules in OUTPUT."""
    chains = {"OUTPUT": Chain("OUTPUT", rules, "ACCEPT"), "ISTIO_OUTPUT": Chain("ISTIO_OUTPUT", ())}
    return Table("nat", ordered("nat", chains))


def test_a_batch_that_is_refused_does_nothing(namespace: Namespace) -> None:
    """Its last rule has a target that the kernel does not know."""
    succeed(namespace, *REDIRECT)
    before = saved(namespace)
    impossible = nat(Rule((), Jump("ISTIO_OUTPUT")), Rule((), UnknownTarget("NONESUCH", 0, bytes(8))))

    def write() -> str:
        with pytest.raises(KernelError) as caught:
            IptablesNft().write((TableChange(IPV6, "nat", None), TableChange(IPV4, "nat", impossible)))
        return str(caught.value)

    outcome = namespace.inside(write)
    assert outcome.startswith("nftables: ipv4 nat OUTPUT: ")
    assert (
        "the kernel has no target NONESUCH (revision 0) that nftables can use, which -A OUTPUT -j NONESUCH" in outcome
    )
    assert outcome.endswith("load the modules nft_compat and xt_NONESUCH")
    assert saved(namespace) == before


@pytest.mark.parametrize("at", [1, 2])
def test_a_refusal_among_long_lists_names_its_rule(namespace: Namespace, at: int) -> None:
    """Whether the rules before and behind it are made at once, or it is one of them."""
    values = tuple(Network(bytes((10, n // 256, n % 256, 0)), 24) for n in range(700))
    run = Run((Rule((Destination(values[0]),), Verdict("RETURN")),), values)
    impossible = Rule((), UnknownTarget("NONESUCH", 0, bytes(8)))
    none_such = Run((Rule((Destination(values[0]),), impossible.target),), values)
    parts = {1: (run, impossible, run), 2: (run, none_such)}[at]
    table = Table("nat", ordered("nat", {"ISTIO_OUTPUT": Chain.of("ISTIO_OUTPUT", parts)}))

    def write() -> str:
        with pytest.raises(KernelError) as caught:
            IptablesNft().replace(IPV4, table)
        return str(caught.value)

    text = {1: "-A ISTIO_OUTPUT -j NONESUCH", 2: "-A ISTIO_OUTPUT -d 10.0.0.0/24 -j NONESUCH"}[at]
    assert f"(revision 0) that nftables can use, which {text} [unknown: 8 bytes] needs" in namespace.inside(write)
    assert namespace.run("nft", "list", "ruleset") == ""


def test_more_refusals_than_a_socket_holds(namespace: Namespace) -> None:
    """The first is what is said."""
    rules = (Rule((), UnknownTarget(f"NONE{number}", 0, bytes(8))) for number in range(2_000))
    impossible = nat(Rule((), Jump("ISTIO_OUTPUT")), *rules)

    def write() -> str:
        with pytest.raises(KernelError) as caught:
            IptablesNft().replace(IPV4, impossible)
        return str(caught.value)

    assert namespace.inside(write).startswith("nftables: ipv4 nat OUTPUT: ")
    assert namespace.run("nft", "list", "ruleset") == ""


def test_without_net_admin_the_capability_is_named(namespace: Namespace) -> None:
    def read() -> str:
        without("net_admin")
        with pytest.raises(KernelError) as caught:
            IptablesNft().read(IPV4)
        return str(caught.value)

    # Where there is nothing to read there is nothing to refuse, but asking which tables there are is refused.
    assert "NET_ADMIN" in namespace.forked(read)


def test_net_raw_is_not_needed(namespace: Namespace) -> None:
    [desired] = [each for each in _rulesets("article-ipv6") if each.family == IPV6]

    def write() -> bool:
        without("net_raw")
        firewall = IptablesNft()
        for table in desired.tables:
            firewall.replace(IPV6, table)
        return firewall.read(IPV6) == desired

    assert namespace.forked(write)


def _rulesets(name: str) -> list[Ruleset]:
    return [load(text, family) for family, text in golden(name).items() if text]


def test_no_process_is_started(namespace: Namespace) -> None:
    run = traced(namespace, "execve,clone,clone3,fork,vfork", *TPROXY)
    assert run.code == 0, run.log
    assert len(run.calls) == 1, run.calls


def test_a_writer_that_knows_no_lock_loses_nothing(namespace: Namespace) -> None:
    """While we apply and clean up, it adds a hundred rules; the kernel takes no batch made for older tables."""
    ours = start(namespace, *REDIRECT)
    failures: list[str] = []

    def write() -> None:
        for number in range(1, 101):
            done = namespace.completed(
                "iptables-nft", "-t", "nat", "-A", "OUTPUT", "-d", f"10.0.0.{number}", "-j", "RETURN"
            )
            failures.extend([done.stderr] if done.returncode else [])

    thread = threading.Thread(target=write)
    thread.start()
    assert ours.wait() == 0, ours.communicate()
    ours.communicate()
    while thread.is_alive():
        succeed(namespace, *REDIRECT, "--cleanup-only")
        succeed(namespace, *REDIRECT)
    thread.join()
    assert not failures
    text = namespace.run(SAVE[IPV4], "-t", "nat")
    assert re.findall(r"-A OUTPUT -d 10\.0\.0\.(\d+)/32 -j RETURN", text) == [str(n) for n in range(1, 101)]
    succeed(namespace, *REDIRECT, "--cleanup-only")
    assert "ISTIO" not in namespace.run(SAVE[IPV4])


def test_ten_thousand_rules(namespace: Namespace) -> None:
    ports = ",".join(str(port) for port in range(1, 20001, 2))
    words = ["-i", "*", "-b", "*", "-d", ports, "-u", "1337", "--no-enable-ipv6", *NFT]
    dry = completed(namespace, *words, "--dry-run").stdout
    succeed(namespace, *words)
    assert saved(namespace)[IPV4] == tables(dry)
    assert "in place" in succeed(namespace, *words)
    succeed(namespace, *words, "--cleanup-only")
    assert namespace.run("nft", "list", "ruleset") == ""


def test_long_lists_are_what_iptables_nft_restore_writes(namespace: Namespace) -> None:
    """To the byte: networks of many lengths in both families, ports and ranges, more than are put together at once."""
    four = [f"{1 + n % 200}.{n // 200}.{n % 128 * 2}.{n % 7 * 32}/{32 - n % 25}" for n in range(1_203)]
    six = [f"fd00:{n:x}::{n:x}/{128 - n % 120}" for n in range(1_203)]
    ports = [f"{20_000 + 3 * n}{f'-{20_001 + 3 * n}' * (n % 3 == 0)}" for n in range(1_203)]
    excluded = ["-x", ",".join(each for pair in zip(four, six, strict=True) for each in pair), "-o", ",".join(ports)]
    words = [*argv("article-ipv6"), *excluded, *NFT]
    succeed(namespace, *words)
    with Namespace() as other:
        for family in FAMILIES:
            other.run(RESTORE[family], text=completed(namespace, *words, "--dry-run", "--ip-family", family).stdout)
        assert saved(namespace) == saved(other)
        if version(namespace) < (1, 8, 10):
            assert messages(namespace) == messages(other)
        assert "in place, nothing written" in succeed(namespace, *words)
        other.run("iptables-nft", "-t", "nat", "-R", "ISTIO_OUTPUT", "700", "-d", "1.2.3.4/32", "-j", "RETURN")
        assert "ipv4 nat ISTIO_OUTPUT rule 700 " in refuse(other, *words)


# Chains and rules that come and go: a rule may be dumped whose chain was not there a moment ago.
WRITER = """
while :; do
    nft "add chain {table} other; add rule {table} other counter accept; add set {table} s {{ type ipv4_addr; }}"
    nft "flush chain {table} other; delete chain {table} other; delete set {table} s"
done
"""


@pytest.mark.parametrize(
    ("firewall", "table", "flags"),
    [(IptablesNft, "ip nat", NFT), (Nftables, "inet istio-proxy-nat", ["--native-nftables"])],
)
def test_reading_while_another_program_writes(
    namespace: Namespace, firewall: type[IptablesNft | Nftables], table: str, flags: list[str]
) -> None:
    """Chains, rules and sets are dumps of their own: what was changed between them is read again."""
    succeed(namespace, *argv("article"), *flags)
    words = ["ip", "netns", "exec", namespace.name, "sh", "-c", WRITER.format(table=table)]
    with subprocess.Popen(words, stderr=subprocess.DEVNULL, start_new_session=True) as writer:

        def read() -> set[frozenset[str]]:
            outcomet = set()
            for _ in range(300):
                [nat] = firewall().read(IPV4).tables
                outcomet.add(frozenset(chain.name for chain in nat.chains if chain.rules))
            return outcomet

        try:
            outcome = namespace.inside(read)
        finally:
            os.killpg(writer.pid, signal.SIGKILL)
    # With the writer's chain and its rule, or without both.
    [without] = [each for each in outcome if "other" not in each]
    assert outcome <= {without, without | {"other"}}
