"""Two engines, one meaning: what libiptc writes python-iptables reads, and the other way round."""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from integration.kernel.test_iptables_save import saved, whole
from integration.kit import program
from integration.kit.canaries import canaries, plant
from integration.kit.namespace import Namespace
from istio_init.errors import KernelError
from istio_init.formats.iptables_restore import parse as load
from istio_init.formats.iptables_save import dump_table
from istio_init.kernel.xtables.firewall import Libiptc
from istio_init.kernel.xtables.python_iptables import PythonIptables
from istio_init.model.extensions import Tproxy
from istio_init.model.rules import FAMILIES, IPV4, IPV6, TCP, Chain, Protocol, Rule, Table, ordered
from tests.kit.strategies import rulesets, wanted_tables
from tests.planning.cases import GOLDEN

if TYPE_CHECKING:
    from istio_init.kernel import Firewall
    from istio_init.model.rules import Family, Ruleset, TableName

# A failing example isn't made smaller: each try takes a second.
SOME = settings(max_examples=8, deadline=None, phases=(Phase.explicit, Phase.generate))
TABLES: tuple[TableName, ...] = ("raw", "mangle", "nat", "filter")
READ = (sys.executable, "-c", "from istio_init.kernel.xtables.python_iptables import *; PythonIptables().read('ipv4')")
ENGINES: list[type[Firewall]] = [Libiptc, PythonIptables]


def restored(namespace: Namespace, family: Family, ruleset: Ruleset) -> None:
    """Load a ruleset with iptables' own program, in the place of everything."""
    namespace.run(program.RESTORE[family], text=whole(ruleset))


def read(namespace: Namespace, family: Family, engine: type[Firewall]) -> Ruleset:
    return namespace.inside(lambda: engine().read(family))


def replace(namespace: Namespace, family: Family, desired: Table, engine: type[Firewall] = PythonIptables) -> None:
    namespace.inside(lambda: engine().replace(family, desired))


@pytest.mark.parametrize("family", FAMILIES)
def test_both_read_what_iptables_wrote(namespace: Namespace, family: Family) -> None:
    @SOME
    @given(rulesets(family))
    def check(ruleset: Ruleset) -> None:
        restored(namespace, family, ruleset)
        result = read(namespace, family, PythonIptables)
        assert result == read(namespace, family, Libiptc)
        assert [result.table(table.name) for table in ruleset.tables] == list(ruleset.tables)

    check()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("writer", ENGINES)
def test_both_read_what_either_wrote(namespace: Namespace, family: Family, writer: type[Firewall]) -> None:
    """Over whatever stood there before: the two read the same, signatures too, and the kernel saves our text."""

    @SOME
    @given(st.sampled_from(TABLES).flatmap(lambda name: wanted_tables(family, name)))
    def check(desired: Table) -> None:
        replace(namespace, family, desired, writer)
        for reader in ENGINES:
            table = read(namespace, family, reader).table(desired.name)
            assert table == desired
            assert all(rule.ours for chain in table.chains for rule in chain.rules)
        assert saved(namespace, family, desired.name) == dump_table(desired)

    check()


@pytest.mark.parametrize("family", FAMILIES)
def test_others_rules_are_read_alike_and_left_alone(namespace: Namespace, family: Family) -> None:
    """Whatever extensions they use."""
    plant(namespace)
    before = canaries(namespace, family)
    actual = read(namespace, family, PythonIptables)
    assert actual == read(namespace, family, Libiptc)
    assert len(actual.tables) == 5
    first, _, second = (GOLDEN / "article-tproxy.txt").read_text().partition("# IPv6: for ip6tables-restore\n")
    plan = load(second if family == IPV6 else first, family)
    for table in plan.tables:
        replace(namespace, family, table)
    assert canaries(namespace, family) == before
    assert read(namespace, family, Libiptc) != actual
    for table in plan.tables:
        namespace.inside(partial(PythonIptables().remove, family, table.name))
    assert canaries(namespace, family) == before
    assert read(namespace, family, Libiptc) == actual


def nat(family: Family, *rules: str) -> Table:
    """A nat table with these rules."""
    text = "".join(f"-A {rule}\n" for rule in rules)
    [table] = load(f"*nat\n:OUTPUT ACCEPT\n:ISTIO_OUTPUT -\n{text}COMMIT\n", family).tables
    return table


@pytest.mark.parametrize("family", FAMILIES)
def test_only_the_table_that_is_asked_for_comes_into_being(namespace: Namespace, family: Family) -> None:
    """Even with a jump, for which python-iptables by itself opens all five."""
    assert read(namespace, family, PythonIptables).tables == ()
    namespace.inside(lambda: PythonIptables().remove(family, "nat"))
    assert program.existing(namespace, family) == set()
    replace(namespace, family, nat(family, "OUTPUT -j ISTIO_OUTPUT"))
    assert program.existing(namespace, family) == {"nat"}


@pytest.mark.parametrize("rule", ["OUTPUT -o lo -p tcp -j ACCEPT", "OUTPUT ! -o lo+ ! -p tcp -j ACCEPT"])
def test_ipv6_interfaces_and_protocols_count_as_they_should(namespace: Namespace, rule: str) -> None:
    """By itself python-iptables lets other interfaces pass, and has the kernel ignore a protocol that is negated."""
    desired = nat(IPV6, rule)
    replace(namespace, IPV6, desired)
    assert read(namespace, IPV6, Libiptc).table("nat") == desired


@pytest.mark.parametrize("family", FAMILIES)
def test_a_refusal_says_what_the_kernel_said_and_changes_nothing(namespace: Namespace, family: Family) -> None:
    replace(namespace, family, nat(family, "OUTPUT -o lo -j ACCEPT"))
    before = program.saved(namespace, family)
    target = Tproxy(15006, bytes(4 if family == IPV4 else 16), 1337)
    output = Chain("OUTPUT", (Rule((Protocol(TCP),), target),), "ACCEPT")
    wrong = Table("nat", ordered("nat", {"OUTPUT": output}))
    for engine in ENGINES:
        with pytest.raises(KernelError, match=rf"^{family} nat: can't commit the table: Invalid argument"):
            replace(namespace, family, wrong, engine)
    assert program.saved(namespace, family) == before


def test_what_libxtables_does_not_take_is_named(namespace: Namespace) -> None:
    """REDIRECT to a port needs a protocol that has ports."""
    with pytest.raises(KernelError, match=r"ipv4 nat: python-iptables doesn't take -j REDIRECT --to-ports 5: "):
        replace(namespace, IPV4, nat(IPV4, "ISTIO_OUTPUT -j REDIRECT --to-ports 5"))


def test_without_capabilities_it_is_said_which_is_missing(namespace: Namespace) -> None:
    replace(namespace, IPV4, nat(IPV4))
    done = namespace.completed("setpriv", "--bounding-set=-net_raw", "--inh-caps=-net_raw", *READ)
    assert done.returncode == 1
    assert "NET_RAW missing: run with the capabilities NET_ADMIN and NET_RAW" in done.stderr


def test_a_run_with_it_ends_in_the_same_rules(namespace: Namespace) -> None:
    flags = ("-m", "TPROXY", "-b", "*", "-i", "*", "--redirect-dns", "--dns-servers", "192.0.2.53,2001:db8::53")
    engine = ("--iptables-engine", "python-iptables")
    with Namespace() as other:
        program.succeed(other, *flags, "--enable-ipv6")
        program.succeed(namespace, *flags, "--enable-ipv6", *engine)
        assert program.all_saved(namespace) == program.all_saved(other)
    assert "in place, nothing written" in program.succeed(namespace, *flags, "--enable-ipv6")
    assert "in place, nothing written" in program.succeed(namespace, *flags, "--enable-ipv6", *engine)
    program.succeed(namespace, "--cleanup-only", *engine)
    assert not any("-A" in text for texts in program.all_saved(namespace).values() for text in texts.values())


def test_it_starts_nothing_that_is_found_in_path(namespace: Namespace) -> None:
    """By itself python-iptables runs ldconfig, gcc and ld; modprobe is the kernel's own setting."""
    trace = ("strace", "-f", "-qq", "-e", "trace=execve", "-e", "signal=none")
    done = namespace.completed(*trace, *READ)
    assert done.returncode == 0, done.stderr
    started = [line.split('"')[1] for line in done.stderr.splitlines() if "execve(" in line and " = 0" in line]
    assert {path for path in started if not path.endswith("modprobe")} == {sys.executable}


# What the child does before it imports the engine, and then options as a libxtables has them whose entries have `more`
# bytes behind those that python-iptables knows: iptables 1.8.11's have 8. They have no fewer than this machine's, which
# libxtables itself reads.
LONGER = """
import ctypes
from istio_init.kernel.xtables import python_iptables
python_iptables._prepare()
from iptc.xtables import xt_option_entry, xtables
from istio_init.kernel.xtables.python_iptables_options import entry_size, mend
size, step = ctypes.sizeof(xt_option_entry), entry_size()
owner = xtables(2).find_match("owner")
options = bytearray()
at = ctypes.cast(owner[0].x6_options, ctypes.c_void_p).value
while xt_option_entry.from_address(at).name is not None:
    options += ctypes.string_at(at, size) + bytes(max(MORE, step - size))
    at += step
buffer = ctypes.create_string_buffer(bytes(options) + bytes(2 * size))
owner[0].x6_options = ctypes.cast(buffer, ctypes.POINTER(xt_option_entry))
mend()
found = xtables(2)
print([found._option_lookup(owner[0].x6_options, name) is not None for name in (b"uid-owner", b"gid-owner", b"no")])
"""


@pytest.mark.parametrize("more", [0, 8])
def test_the_options_of_each_libxtables_are_found(namespace: Namespace, more: int) -> None:
    output = namespace.run(sys.executable, "-c", LONGER.replace("MORE", str(more)))
    assert output.strip() == "[True, True, False]"


def test_options_that_are_laid_out_otherwise_are_an_error(namespace: Namespace) -> None:
    done = namespace.completed(sys.executable, "-c", LONGER.replace("MORE", "24"))
    assert "use --iptables-engine libiptc" in done.stderr
