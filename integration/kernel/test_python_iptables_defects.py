"""What python-iptables gets wrong, and why it does not carry the hot path (docs/design.md).

Each test shows one fault as it is in 1.2.0. One that fails has found a release that mends it: its docstring
says what can then go.
"""

from __future__ import annotations

import fcntl
import os
import sys
from typing import TYPE_CHECKING

import pytest

from integration.kit import program
from istio_init.model.rules import IPV4

if TYPE_CHECKING:
    import subprocess

    from integration.kit.namespace import Namespace

REDIRECT = """
def redirect(kind):
    rule = kind()
    rule.protocol = "tcp"
    rule.create_target("REDIRECT").to_ports = "15001"
"""
EVERY_TABLE = {"raw", "mangle", "nat", "filter", "security"}


def completed(namespace: Namespace, code: str, *prefix: str) -> subprocess.CompletedProcess[str]:
    """A program that begins with `import iptc`, run in the namespace."""
    return namespace.completed(*prefix, sys.executable, "-c", f"import iptc\n{code}")


def printed(namespace: Namespace, code: str) -> str:
    """The same, its output; it must end well."""
    done = completed(namespace, code)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("order", ["Rule, iptc.Rule6", "Rule6, iptc.Rule"])
def test_a_process_can_serve_one_family_alone(namespace: Namespace, order: str) -> None:
    """The reason for a process a call: kernel/xtables/python_iptables.py could otherwise ask its own."""
    done = completed(namespace, f"{REDIRECT}\nfor kind in (iptc.{order}): redirect(kind); print('made')")
    assert done.returncode != 0
    assert done.stdout.count("made") == 1


def test_an_ipv6_interface_is_masked_with_ones(namespace: Namespace) -> None:
    """A bit of each byte instead of all eight: `-o lo` also takes packets that leave by veth0. See _mend_interface."""
    code = "rule = iptc.Rule6(); rule.out_interface = 'lo'; print(bytes(rule.entry.ipv6)[112:116].hex())"
    assert printed(namespace, code) == "01010100"


def test_the_plus_of_an_interface_is_lost(namespace: Namespace) -> None:
    """In the kernel's entry iptables keeps it, so equal rules differ in their bytes. See _mend_interface."""
    code = "rule = iptc.Rule(); rule.out_interface = 'eth+'; print(rule.entry.ip.outiface.decode())"
    assert printed(namespace, code) == "eth"


def test_a_negated_ipv6_protocol_is_not_looked_at(namespace: Namespace) -> None:
    """Without IP6T_F_PROTO the kernel takes packets of every protocol. See _put."""
    code = "rule = iptc.Rule6(); rule.protocol = '!tcp'; print(rule.entry.ipv6.flags & rule.entry.ipv6.IP6T_F_PROTO)"
    assert printed(namespace, code) == "0"


def test_a_jump_brings_all_tables_into_being(namespace: Namespace) -> None:
    """And their hooks on every packet's way. See _Rule4."""
    code = "table = iptc.Table('nat'); table.create_chain('THEIRS'); iptc.Rule().create_target('THEIRS')"
    printed(namespace, code)
    assert program.existing(namespace, IPV4) == EVERY_TABLE


def test_an_option_can_not_be_empty(namespace: Namespace) -> None:
    """Nor a comment, which for iptables it can. See _is_unspeakable."""
    done = completed(namespace, "iptc.Rule().create_match('comment').comment = ''")
    assert done.returncode != 0
    assert "XTablesError" in done.stderr


def test_a_rule_is_deleted_by_its_looks(namespace: Namespace) -> None:
    """Of equal rules the first goes, whichever program wrote it. See TableHandle._edit."""
    add, save = ("-t", "nat", "-A", "OUTPUT", "-o", "lo", "-j"), (program.SAVE[IPV4], "-t", "nat", "--counters")
    for counters in (("5", "6"), ("7", "8")):
        namespace.run(program.IPTABLES[IPV4], *add, "RETURN", "--set-counters", *counters)
    code = "chain = iptc.Chain(iptc.Table('nat'), 'OUTPUT'); chain.delete_rule(chain.rules[1])"
    printed(namespace, code)
    assert [line for line in namespace.run(*save).splitlines() if "-A" in line] == ["[7:8] -A OUTPUT -o lo -j RETURN"]


def test_it_takes_no_lock(namespace: Namespace) -> None:
    """The iptables command does, and waits for its holder. Our commands take it before they call any engine."""
    with open(namespace.lock, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert (
            "holding the xtables lock" in namespace.completed(program.IPTABLES[IPV4], "-w", "1", "-N", "THEIRS").stderr
        )
        printed(namespace, "iptc.Table('filter').create_chain('OURS')")
    assert ":OURS " in namespace.run(program.SAVE[IPV4], "-t", "filter")


def test_its_import_starts_programs(namespace: Namespace) -> None:
    """ldconfig, gcc and what gcc starts, as root, found in PATH. See python_iptables._prepare."""
    done = completed(namespace, "", "strace", "-f", "-qq", "-e", "trace=execve", "-e", "signal=none")
    started = {os.path.basename(line.split('"')[1]) for line in done.stderr.splitlines() if "execve(" in line}
    assert {"ldconfig", "gcc", "ld"} <= started
