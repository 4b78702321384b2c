"""Kernels that lack something: each refusal is one clear line, and leaves everything as it was.

All cases run in one boot of the distribution's kernel (machine.py), from which a case leaves modules out. What is not
left out is loaded when the kernel asks for it; the legacy tables' own, ip_tables and ip6_tables, no kernel asks for.
"""

from __future__ import annotations

import json
import pathlib
import re
import tempfile
from typing import TYPE_CHECKING, NamedTuple

import pytest

from integration.kit.backends import BACKENDS
from integration.kit.guest import Case
from integration.kit.machine import Machine, Outcome

if TYPE_CHECKING:
    from collections.abc import Iterator

PLAIN = ["-u", "1337", "-i", "*", "-b", "*"]
TPROXY = [*PLAIN, "-m", "TPROXY"]
DNS = [*PLAIN, "--redirect-dns", "--capture-all-dns"]
FULL = [*TPROXY, "--enable-ipv6", "--redirect-dns", "--capture-all-dns", "--drop-invalid"]
LEGACY, NFT, NATIVE = BACKENDS.values()

IP_TABLES = ["ip_tables", "ip6_tables"]
NO_LEGACY = ["ip_tables", "ip6_tables"]
NO_NFT = ["nf_tables"]


# The first one boots a kernel on an emulated processor.
pytestmark = pytest.mark.timeout(2700)


class Row(NamedTuple):
    """A command line, the modules that are left out and those that are loaded before, and what its last line says.

    `words` empty means that it succeeds.
    """

    argv: list[str]
    without: list[str]
    loaded: list[str]
    words: tuple[str, ...]


REFUSED = {
    "legacy tables": Row([*PLAIN, *LEGACY], NO_LEGACY, [], ("load the kernel module ip_tables", "only nftables works")),
    "legacy tables, IPv6": Row(
        [*PLAIN, "--enable-ipv6", *LEGACY],
        ["ip6_tables"],
        ["ip_tables"],
        ("ipv6 nat: ", "load the kernel module ip6_tables"),
    ),
    "legacy nat": Row([*PLAIN, *LEGACY], ["iptable_nat"], IP_TABLES, ("ipv4 nat: ", "load the module iptable_nat")),
    "legacy mangle": Row([*TPROXY, *LEGACY], ["iptable_mangle"], IP_TABLES, ("load the module iptable_mangle",)),
    "legacy owner": Row(
        [*PLAIN, *LEGACY], ["xt_owner"], IP_TABLES, ("no match owner (revision 1)", "load the module xt_owner")
    ),
    "legacy TPROXY": Row(
        [*TPROXY, *LEGACY], ["xt_TPROXY"], IP_TABLES, ("no target TPROXY (revision 1)", "load the module xt_TPROXY")
    ),
    "legacy CT": Row([*DNS, *LEGACY], ["xt_CT"], IP_TABLES, ("no target CT (revision 2)", "load the module xt_CT")),
    "nftables for nft": Row([*PLAIN, *NFT], NO_NFT, IP_TABLES, ("nftables", "load the module")),
    "nftables for native": Row([*PLAIN, *NATIVE], NO_NFT, IP_TABLES, ("nftables", "load the module")),
    "both": Row(PLAIN, [*NO_LEGACY, *NO_NFT], [], ("load the kernel module ip_tables",)),
    "nft_compat": Row([*PLAIN, *NFT], ["nft_compat"], [], ("nft_compat",)),
    "nft chains": Row([*PLAIN, *NFT], ["nft_chain_nat"], [], ("ipv4 nat ", "load the module nft_chain_nat")),
    "nft owner": Row([*PLAIN, *NFT], ["xt_owner"], [], ("no match owner (revision 1)", "nft_compat and xt_owner")),
    "nft TPROXY": Row(
        [*TPROXY, *NFT], ["xt_TPROXY"], [], ("no target TPROXY (revision 1)", "nft_compat and xt_TPROXY")
    ),
    "nft CT": Row([*DNS, *NFT], ["xt_CT"], [], ("no target CT (revision 2)", "nft_compat and xt_CT")),
    "native chains": Row([*PLAIN, *NATIVE], ["nft_chain_nat"], [], ("istio-proxy-nat", "nft_chain_nat")),
    "native redirect": Row([*PLAIN, *NATIVE], ["nft_redir"], [], ("istio-proxy-nat", "nft_redir")),
    "native tproxy": Row([*TPROXY, *NATIVE], ["nft_tproxy"], [], ("istio-proxy-mangle", "nft_tproxy")),
    "native ct": Row([*DNS, *NATIVE], ["nft_ct"], [], ("istio-proxy-raw", "nft_ct")),
}

# What a run without a flag takes where something is left out, and that it does all it is to do.
CHOSEN = {
    "no legacy": Row(
        FULL, NO_LEGACY, [], ("nft (this kernel has no legacy tables for ipv4 and ipv6, and nftables works)",)
    ),
    "no nftables": Row(FULL, NO_NFT, IP_TABLES, ("legacy (there are no rules yet, and the legacy tables work)",)),
    "both": Row(PLAIN, [], IP_TABLES, ("legacy (there are no rules yet, and the legacy tables work)",)),
    "native, no x_tables": Row([*FULL, *NATIVE], ["x_tables"], [], ("native (--native-nftables)",)),
}
# The module that is left out, the rows that say so and how, and what to do.
DIAGNOSED = {
    "xt_TPROXY": (
        {"legacy ipv4: target TPROXY": "fail", "nft ipv4: target TPROXY": "warn"},
        "load the module xt_TPROXY",
    ),
}

# Rules of extensions whose modules most machines that run these tests do not have.
OTHERS = (
    "-A OUTPUT -j LED --led-trigger-id a\\b --led-delay 500",
    "-A OUTPUT -j LED --led-trigger-id c --led-delay inf --led-always-blink",
    "-A OUTPUT -m ipvs --ipvs -j ACCEPT",
    "-A OUTPUT -m ipvs ! --ipvs -j ACCEPT",
    "-A OUTPUT -m ipvs ! --vproto 6 --vaddr 10.96.0.0/16 ! --vport 443 --vdir REPLY -j ACCEPT",
    "-A OUTPUT -m ipvs --vmethod MASQ --vportctl 21 -j ACCEPT",
    "-A OUTPUT -m ipvs --vaddr 10.96.0.1 --vmethod GATE -j ACCEPT",
)


def runs(row: Row) -> list[list[str]]:
    """The runs of a row that is to succeed."""
    apply = ["istio-iptables", *row.argv]
    return [apply, apply, [*apply, "--cleanup-only"]]


@pytest.fixture(scope="module")
def outcomes() -> dict[str, list[Outcome]]:
    """What came of every row, by its name."""
    cases = {}
    for name, row in REFUSED.items():
        cases[name] = Case([["istio-iptables", *row.argv]], row.without, row.loaded)
    for name, row in CHOSEN.items():
        cases[f"chosen: {name}"] = Case(runs(row), row.without, row.loaded)
    for module in DIAGNOSED:
        argv = ["istio-init", "doctor", *TPROXY, *LEGACY, "--output", "json"]
        cases[f"doctor {module}"] = Case([argv], [module], IP_TABLES)
    for backend, loaded in (("legacy", IP_TABLES), ("nft", [])):
        prepare = tuple(f"iptables-{backend} -t mangle {rule}" for rule in OTHERS)
        show = ["istio-init", "show", "--force-iptables-binary", backend, "--output", "text"]
        cases[f"others, {backend}"] = Case([show], [], loaded, prepare)
    # A kernel and its modules are too large to be kept, as pytest keeps its own directories.
    with tempfile.TemporaryDirectory(prefix="istio-init-", dir="/var/tmp") as directory:
        done = Machine(pathlib.Path(directory)).run(list(cases.values()))
    return dict(zip(cases, done, strict=True))


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_missing_is_said_and_nothing_is_done(outcomes: dict[str, list[Outcome]], name: str) -> None:
    [run] = outcomes[name]
    last = run.log.splitlines()[-1]
    assert run.code == 1, run.log
    assert "Traceback" not in run.log
    assert "\terror\t" in last
    for words in REFUSED[name].words:
        assert words in last
    assert standing(run.after) == standing(run.before), run.log


@pytest.mark.parametrize("name", CHOSEN)
def test_a_run_takes_what_there_is(outcomes: dict[str, list[Outcome]], name: str) -> None:
    """On another kernel than this machine's: applied, found in place, and cleaned up."""
    done = outcomes[f"chosen: {name}"]
    applied, again, cleaned = done
    for run in done:
        assert run.code == 0, run.log
        assert "\twarn\t" not in run.log
    assert f"backend: {CHOSEN[name].words[0]}" in applied.log
    assert "applied (no Istio rules found)" in applied.log
    assert standing(applied.after) != standing(applied.before)
    assert "in place" in again.log
    assert again.after == again.before
    assert "cleaned up" in cleaned.log
    assert standing(cleaned.after) == standing(applied.before)


@pytest.mark.parametrize("module", DIAGNOSED)
def test_the_doctor_names_what_is_missing(outcomes: dict[str, list[Outcome]], module: str) -> None:
    [run] = outcomes[f"doctor {module}"]
    rows, words = DIAGNOSED[module]
    checks = {each["name"]: each for each in json.loads(run.output)["checks"]}
    for row, status in rows.items():
        assert checks[row]["status"] == status
        assert words in checks[row]["finding"] + checks[row]["remedy"]
    assert run.code == ("fail" in rows.values())
    assert run.after == run.before


def standing(state: dict[str, str]) -> dict[str, list[str]]:
    """What exists, without the legacy tables' frames: a table that a run has created remains, empty."""
    return {name: list(_rules(name, text)) for name, text in state.items()}


def _rules(name: str, text: str) -> Iterator[str]:
    for line in text.splitlines():
        if name not in {"ipv4", "ipv6"} or line.startswith(("-A", ":ISTIO")):
            yield line


@pytest.mark.parametrize("backend", ["legacy", "nft"])
def test_rules_of_rare_extensions_are_printed_by_their_options(
    outcomes: dict[str, list[Outcome]], backend: str
) -> None:
    """As iptables-save prints them: a name in quotes, and every address with its mask."""
    [run] = outcomes[f"others, {backend}"]
    saved = outcomes["others, legacy"][0].after["ipv4"]
    rules = [
        re.sub("^-A OUTPUT (-j LED|-m)| -j ACCEPT$", "", line) for line in saved.splitlines() if "-A OUTPUT" in line
    ]
    assert len(rules) == len(OTHERS)
    lines = run.output.splitlines()
    assert [rule for rule in rules if not any(line.endswith(rule) for line in lines)] == [], run.output
