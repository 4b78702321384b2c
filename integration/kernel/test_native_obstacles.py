"""What is in the way of a native table: other kinds of objects in it, its owner, full hooks. It goes, or is named."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest

from integration.kernel.test_native_chains import chains, tables
from integration.kit.asking import ask
from integration.kit.backends import BACKENDS
from integration.kit.owned_table import DROP, OWNER, PERSIST, owned_table
from integration.kit.program import completed, refuse, succeed
from istio_init.kernel.netlink.batch import BatchRefused
from istio_init.kernel.netlink.nfnetlink import (
    CHAIN_NAME,
    DELCHAIN,
    DELRULE,
    FAMILIES,
    NFPROTO_INET,
    NFT_NAME,
    body,
    text,
)
from istio_init.kernel.nft.native_refusal import explain
from tests.planning.cases import argv

if TYPE_CHECKING:
    from integration.kit.namespace import Namespace

NATIVE, REDIRECT, TPROXY = BACKENDS["native"], argv("article-ipv6"), argv("article-tproxy")
NAT = "inet istio-proxy-nat"
# Added to the tables of REDIRECT by someone else; the kernel refuses to delete a chain that a map's element jumps to,
# and knows a chain without a name of its own only together with the rule that jumps to it.
OBJECTS = {
    "a verdict map that jumps to a chain": [
        f"add map {NAT} ports {{ type inet_service : verdict; }}",
        f"add element {NAT} ports {{ 1 : jump istio-output, 2 : goto istio-redirect }}",
    ],
    "a verdict map that a rule uses": [
        f"add map {NAT} ports {{ type inet_service : verdict; }}",
        f"add element {NAT} ports {{ 1 : jump istio-output, 2 : goto istio-redirect }}",
        f"insert rule {NAT} output tcp dport vmap @ports",
    ],
    "a verdict map of one rule": [f"insert rule {NAT} output tcp dport vmap {{ 1 : jump istio-output, 2 : drop }}"],
    "a chain without a name": [f"insert rule {NAT} output tcp dport 1 jump {{ counter drop; }}"],
    "a counter with a name": [f"add counter {NAT} c", f"insert rule {NAT} output counter name c"],
    "a map of counters": [
        f"add counter {NAT} c",
        f"add map {NAT} counted {{ type inet_service : counter; }}",
        f'add element {NAT} counted {{ 1 : "c" }}',
        f"insert rule {NAT} output counter name tcp dport map @counted",
    ],
    "a set that grows": [
        f"add set {NAT} seen {{ type ipv4_addr; flags dynamic,timeout; timeout 5m; }}",
        f"insert rule {NAT} output add @seen {{ ip daddr }}",
    ],
}


@pytest.mark.parametrize("what", OBJECTS)
def test_objects_of_others_go(namespace: Namespace, what: str) -> None:
    """With the base chains left in place, as ever."""
    succeed(namespace, *NATIVE, *REDIRECT)
    before = chains(namespace)
    [rules] = [each.partition("chain")[2] for each in tables(namespace) if each]
    namespace.run("nft", "; ".join(OBJECTS[what]))
    succeed(namespace, *NATIVE, *REDIRECT, "--reconcile")
    assert [each.partition("chain")[2] for each in tables(namespace) if each] == [rules]
    assert before[:2] == chains(namespace)[:2]
    assert "in place, nothing written" in succeed(namespace, *NATIVE, *REDIRECT)
    succeed(namespace, "--cleanup-only")
    assert tables(namespace) == [""]


@pytest.mark.parametrize("flags", [OWNER, OWNER | PERSIST])
@pytest.mark.parametrize("backend", ["native", "nft"])
def test_a_table_that_belongs_to_another_program_is_named_with_it(
    namespace: Namespace, backend: str, flags: int
) -> None:
    number, table = (NFPROTO_INET, "istio-proxy-nat") if backend == "native" else (FAMILIES["ipv4"], "nat")
    with owned_table(namespace, number, table, flags) as port:
        message = refuse(namespace, *BACKENDS[backend], *REDIRECT, "--reconcile")
    assert "Operation not permitted (EPERM): " in message
    kind = "inet" if backend == "native" else "ip"
    assert f"the table {kind} {table} has an owner (flags owner), the program with the netlink port {port}" in message
    assert "SELinux" not in message
    assert message.strip().count("\n") == message.count("\tinfo\t")
    succeed(namespace, *BACKENDS[backend], *REDIRECT, "--reconcile")
    assert "in place" in succeed(namespace, *BACKENDS[backend], *REDIRECT)


def test_rules_that_belong_to_another_program_are_read(namespace: Namespace) -> None:
    """They are in force: only a table that is dormant has no hooks."""
    with owned_table(namespace, NFPROTO_INET, "firewalld", policy=DROP):
        answer = ask(namespace, "explain", "--live", "--outbound", "--to", "10.1.2.3:443", "-u", "1337")
    assert answer.output.startswith(
        "Verdict: dropped, because the policy of OUTPUT in nftables inet firewalld output is DROP."
    )


def test_a_hook_with_as_many_chains_as_the_kernel_allows(namespace: Namespace) -> None:
    full = "".join(f"chain c{n} {{\n type filter hook output priority {n}\n }}\n" for n in range(1024))
    namespace.run("nft", "-f", "-", text=f"table inet full {{\n{full}}}\n")
    message = completed(namespace, *NATIVE, *TPROXY).stderr.splitlines()[-1]
    assert (
        "can't write inet istio-proxy-raw chain output: Argument list too long (E2BIG): the hook has 1,024" in message
    )
    assert namespace.run("nft", "list", "tables") == "table inet full\n"


def test_what_the_kernel_keeps_is_named() -> None:
    """None is known that the kernel keeps now: maps go before the chains that they jump to."""
    head = body(NFPROTO_INET, text(NFT_NAME, "istio-proxy-nat"))
    messages = [(DELRULE, 0, head), (DELCHAIN, 0, head + text(CHAIN_NAME, "istio-output"))]
    refusal = explain(
        BatchRefused(errno.EBUSY, ("", 0), 1), ["nat"], messages, [("istio-proxy-nat", "", 0, None)] * len(messages)
    )
    assert str(refusal) == (
        "nftables: can't write table inet istio-proxy-nat, removing chain 'istio-output': Device or resource busy "
        "(EBUSY): something in the table still needs it (`nft list ruleset`): --cleanup-only removes all of the table"
    )
