"""Rulesets as iptables-save text: what a dry run prints, byte for byte what iptables-save prints after a run.

The spellings are those of iptables-legacy-save 1.8.9 (iptables/iptables.c's print_rule4 and the save
functions of extensions/); integration tests compare them with the program's own output. iptables_restore.py reads
the text back.
"""

from __future__ import annotations

from istio_init.errors import assert_never, shown
from istio_init.formats.addresses import PROTOCOLS, address_text, network_text, ports_option, ports_text, range_text
from istio_init.model.extensions import (
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
    Destination,
    DestinationPorts,
    InInterface,
    Jump,
    OutInterface,
    Owner,
    Protocol,
    Redirect,
    Source,
    SourcePorts,
    Verdict,
)
from istio_init.model.unknown import ENTRY, Comment, UnknownMatch, UnknownTarget

TYPE_CHECKING = False
if TYPE_CHECKING:
    from istio_init.model.rules import Match, Rule, Ruleset, Table, Target

ALL_BITS = 0xFFFFFFFF

# xtables_save_string in libxtables/xtables.c: what a word may consist of to stay bare, and what is escaped
# between quotes.
_BARE = frozenset("_-0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
_ESCAPES = str.maketrans({character: f"\\{character}" for character in "\"\\'"})

# What precedes an option, by the match's `negated`.
_NOT = ("", " !")


def dump(ruleset: Ruleset) -> str:
    """All tables that hold something: a rule, a user's chain, or a policy other than ACCEPT."""
    return "".join(dump_table(table) for table in ruleset.tables if _holds_something(table))


def dump_table(table: Table) -> str:
    """One table from `*name` to `COMMIT`, counters zero."""
    lines = [f"*{table.name}"]
    lines += [f":{chain.name} {chain.policy or '-'} [0:0]" for chain in table.chains]
    lines += [f"-A {chain.name}{_rule(rule)}" for chain in table.chains for rule in chain.rules]
    lines.append("COMMIT\n")
    return "\n".join(lines)


def rule_text(rule: Rule) -> str:
    """One rule without its `-A CHAIN`; empty where it matches everything and only counts.

    Extensions that this program does not know are printed in a form that no program loads, so that the text is never
    mistaken for the whole rule. SaveError for a port without a protocol.
    """
    return _rule(rule)[1:]


def _holds_something(table: Table) -> bool:
    return any(chain.rules or chain.policy != "ACCEPT" for chain in table.chains)


def _rule(rule: Rule) -> str:
    """All matches, then the target, each with a blank before it."""
    text = ""
    before = None
    for match in rule.matches:
        text += _match(match, rule, before)
        before = match
    return text + _target(rule.target)


def _match(match: Match, rule: Rule, before: Match | None) -> str:  # noqa: C901 (one arm a kind)
    """One of a rule's matches, given the match before it. Frequent kinds come first: with 10,000 rules it shows."""
    match match:
        case Protocol():
            # Protocol 0 is every one.
            return f"{_NOT[match.negated]} -p {PROTOCOLS.get(match.number, match.number)}" if match.number else ""
        case DestinationPorts():
            # iptables keeps both sides of one packet's ports in one match.
            module = "" if isinstance(before, SourcePorts) else f" -m {_transport(rule)}"
            return f"{module}{_NOT[match.negated]} --dport {ports_option(match.ports)}"
        case Destination():
            return _network("-d", match)
        case Source():
            return _network("-s", match)
        case InInterface():
            return _interface("-i", match)
        case OutInterface():
            return _interface("-o", match)
        case Owner():
            return f" -m owner{_NOT[match.negated]} --{match.kind}-owner {range_text(match.low, match.high)}"
        case SourcePorts():
            return f" -m {_transport(rule)}{_NOT[match.negated]} --sport {ports_option(match.ports)}"
        case Multiport():
            return f" -m multiport{_NOT[match.negated]} --{match.side} {','.join(map(ports_option, match.ports))}"
        case Mark():
            return f" -m mark{_NOT[match.negated]} --mark {_mark(match)}"
        case ConnMark():
            return f" -m connmark{_NOT[match.negated]} --mark {_mark(match)}"
        case CtState():
            return f" -m conntrack{_NOT[match.negated]} --ctstate {','.join(match.states)}"
        case Comment():
            return f" -m comment --comment {quoted(match.text)}"
        case UnknownMatch(name, _, _, options) if name.startswith((ENTRY, "nf_tables")) and options is not None:
            return f" {options}"
        case UnknownMatch():
            return f" -m {_unknown(match)}"
        case _:
            assert_never(match)


def _target(target: Target) -> str:
    match target:
        case Verdict():
            return f" -j {target.name}" if target.name else ""
        case Jump():
            return f" -{'g' if target.goto else 'j'} {target.chain}"
        case Redirect():
            return f" -j REDIRECT --to-ports {ports_text(target.ports)}"
        case Tproxy():
            where = f"--on-port {target.port} --on-ip {address_text(target.address)}"
            return f" -j TPROXY {where} --tproxy-mark {target.mark:#x}/{target.mask:#x}"
        case SetMark():
            return f" -j MARK --set-xmark {target.value:#x}/{target.mask:#x}"
        case SaveMark():
            return f" -j CONNMARK --save-mark --nfmask {target.nfmask:#x} --ctmask {target.ctmask:#x}"
        case RestoreMark():
            return f" -j CONNMARK --restore-mark --nfmask {target.nfmask:#x} --ctmask {target.ctmask:#x}"
        case CtZone():
            return f" -j CT --zone {target.zone}" if target.zone else " -j CT"
        case UnknownTarget():
            return f" -j {_unknown(target)}"
        case _:
            assert_never(target)


def _network(option: str, match: Source | Destination) -> str:
    """A network match; one that every packet passes isn't printed."""
    if not (match.network.prefix or match.negated):
        return ""
    return f"{_NOT[match.negated]} {option} {network_text(match.network)}"


# What iptables-nft 1.8.10 and later make of `! -i +`, which no packet matches.
NEVER = "INVAL/D"


def _interface(option: str, match: InInterface | OutInterface) -> str:
    """An interface match; + alone is any interface and isn't printed (nor is its negation: iptables forgets it)."""
    if match.name == NEVER:
        return f" ! {option} +"
    return "" if match.name == "+" else f"{_NOT[match.negated]} {option} {match.name}"


def _mark(match: Mark | ConnMark) -> str:
    return f"{match.value:#x}" if match.mask == ALL_BITS else f"{match.value:#x}/{match.mask:#x}"


def _transport(rule: Rule) -> str:
    """The match extension that knows the ports of the rule's protocol."""
    for match in rule.matches:
        if isinstance(match, Protocol) and match.number in (TCP, UDP) and not match.negated:
            return PROTOCOLS[match.number]
    from istio_init.errors_rare import SaveError

    raise SaveError(f"{shown(repr(rule))}: a port needs -p tcp or -p udp in the same rule")


def quoted(text: str) -> str:
    """A text as iptables-save prints a comment: bare where it is one plain word, else between quotes."""
    return text if text and _BARE.issuperset(text) else f'"{text.translate(_ESCAPES)}"'


# Of kernel/nft/compat_decode_rare.py: with a prefix that is too long for the struct.
NFLOG_BY_NFT = "nf_tables log"


def _unknown(extension: UnknownMatch | UnknownTarget) -> str:
    if extension.options is None:
        return f"{extension.name} [unknown: {len(extension.data)} bytes]"
    name = extension.name
    if name == NFLOG_BY_NFT:
        name = "NFLOG"
    # The kernel's conntrack serves -m state as well (XT_CONNTRACK_STATE_ALIAS), and its CT serves NOTRACK.
    if extension.options.partition("--")[2].startswith("state "):
        name = "state"
    elif name == "CT" and not extension.options:
        name = "NOTRACK"
    return f"{name} {extension.options}".rstrip()
