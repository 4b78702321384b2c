"""The options of rules in the kernel, in every backend: applied, read back, inferred, they mean the same plan."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, assume, given, settings

from integration.kit.asking import ask
from integration.kit.backends import BACKENDS
from integration.kit.command_lines import command_lines
from integration.kit.fresh import command, inside_new
from integration.kit.program import succeed
from integration.runner.test_backends import unspeakable
from istio_init.cli.verbs.live_options import read_dump, readings
from istio_init.cni.plugin import sandbox_state
from istio_init.cni.plugin.sandbox_state import SandboxState
from istio_init.formats import dump_reader
from istio_init.log import Log
from istio_init.model.differences import differences
from istio_init.model.rules import FAMILIES, Ruleset
from istio_init.planning.plan import build
from istio_init.runner import access, backends, transaction
from tests.kit.options import options

if TYPE_CHECKING:
    from pathlib import Path

    from integration.kit.namespace import Namespace
    from istio_init.options.table import Options

MANY = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
DUMPS = {
    "legacy": (("iptables-legacy-save",), ("ip6tables-legacy-save",)),
    "nft": (("iptables-nft-save",), ("ip6tables-nft-save",)),
    "native": (("nft", "list", "ruleset"),),
}
USUAL = ["-p", "15001", "-z", "15006", "-u", "1337", "-m", "REDIRECT", "-i", "*", "-x", "", "-b", "*"]
USUAL += ["-d", "15090,15021,15020"]


def in_kernel(inferred: Options) -> None:
    """Hold that the tables have what the plan of the options has, and lack nothing."""
    plan = build(inferred)
    firewall = backends.firewall(inferred)
    for family in FAMILIES:
        desired = plan.ruleset(family) or Ruleset(family, ())
        assert not list(differences(desired, firewall.read(family, plan.ruleset(family))))
    assert not [entry for entry in plan.routing if entry not in access.router().read()]


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_inferred_is_in_place(backend: str) -> None:
    flags = BACKENDS[backend]

    @MANY
    @given(command_lines)
    def holds(arguments: list[str]) -> None:
        chosen = options([*arguments, *flags], {})
        assert chosen is not None
        interfaces = (*chosen.istio_exclude_interfaces, *chosen.kube_virt_interfaces)
        assume(backend != "native" or not any(map(unspeakable, interfaces)))

        def work() -> None:
            transaction.apply(build(chosen), backends.firewall(chosen), access.router(), Log("none"))
            [reading] = readings(chosen)
            assert reading.inference.exact, (reading.inference.remainder, reading.inference.missing)
            in_kernel(reading.inference.options.replace(
                native_nftables=chosen.native_nftables, force_iptables_binary=chosen.force_iptables_binary
            ))  # fmt: skip
            dump = "".join(command(*each) for each in DUMPS[backend])
            saved = read_dump(dump_reader.read_dump(dump))
            assert saved is not None
            assert saved.exact, (saved.remainder, dump)

        inside_new(work)

    holds()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "mode", [[], ["-m", "TPROXY", "-t", "7", "-r", "99"], ["--enable-ipv6"], ["--rule-comments"]], ids=" ".join
)
def test_verbs_need_no_flags(namespace: Namespace, backend: str, mode: list[str]) -> None:
    succeed(namespace, *USUAL, *mode, *BACKENDS[backend])
    place = ["--netns", namespace.path]
    checked = ask(namespace, "check", *place)
    assert (checked.code, checked.output) == (0, f"in place ({backend})\n")
    shown = ask(namespace, "show", *place, "--output", "json")
    assert shown.document["state"] == "in place"
    assert ask(namespace, "prove", *place, "--output", "json").document["holds"]
    explained = ask(namespace, "explain", *place, "--outbound", "--to", "192.0.2.7:443", "--uid", "1000")
    assert explained.output.startswith("Verdict: captured")
    answer = ask(namespace, "options", *place)
    assert answer.code == 0
    words = answer.output.splitlines()[0]
    assert words.startswith("istio-iptables -p 15001 -z 15006 -u 1337 -m ")
    assert answer.output.splitlines()[1] == f"# exact: it makes the rules in the {backend} tables"
    assert "fail  leftovers" not in ask(namespace, "doctor", *place).output


def test_a_flag_is_compared_as_it_is(namespace: Namespace) -> None:
    succeed(namespace, *USUAL)
    assert ask(namespace, "check", "--netns", namespace.path, "-b", "*").code == 3


def test_rules_by_hand_remain(namespace: Namespace) -> None:
    succeed(namespace, *USUAL)
    namespace.run("iptables-legacy", "-t", "nat", "-I", "ISTIO_OUTPUT", "-p", "udp", "-j", "RETURN")
    answer = ask(namespace, "options", "--netns", namespace.path)
    assert answer.code == 3
    assert answer.output.splitlines()[1:] == [
        "# nearest: 1 difference from the rules in the legacy tables:",
        "# ipv4 nat ISTIO_OUTPUT rule 1 unexpected: -p udp -j RETURN",
    ]


def test_missing_routes_are_told(namespace: Namespace) -> None:
    succeed(namespace, *USUAL, "-m", "TPROXY")
    namespace.run("ip", "rule", "del", "fwmark", "1337")
    answer = ask(namespace, "options", "--netns", namespace.path)
    assert answer.code == 3
    assert answer.output.splitlines()[2:] == ["# missing: ip -4 rule add fwmark 1337 lookup 133"]


def test_an_empty_namespace_has_none(namespace: Namespace) -> None:
    answer = ask(namespace, "options", "--netns", namespace.path)
    assert (answer.code, answer.output) == (4, "# no Istio rules found\n")
    assert ask(namespace, "check", "--netns", namespace.path).code == 4


def test_the_plugins_record_counts_while_its_path_leads_here(
    namespace: Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    succeed(namespace, *USUAL)
    directory = str(tmp_path)
    monkeypatch.setattr(sandbox_state.read, "__defaults__", (directory,))
    monkeypatch.setattr(sandbox_state.containers, "__defaults__", (directory,))
    result = options([*USUAL, "-q", "9000", "-i", ""], {})
    number = os.stat(namespace.path).st_ino
    state = SandboxState(
        "abc", sandbox_state.CAPTURED, "", "reviews", options=result, netns=namespace.path, inode=number
    )
    sandbox_state.write(state, directory)
    answer = ask(namespace, "check", "--netns", namespace.path)
    assert answer.code == 3
    assert "missing: -p tcp -m tcp --dport 9000 -j ISTIO_REDIRECT" in answer.output
    sandbox_state.write(state.replace(netns=f"{namespace.path}-gone"), directory)
    assert ask(namespace, "check", "--netns", namespace.path).code == 0
