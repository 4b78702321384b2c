"""Parses iptables-save text into a Ruleset. Unknown syntax is an error: nothing is skipped or guessed.

It accepts the matches and targets of model/rules.py and model/extensions.py as iptables-save prints them.
"""

from __future__ import annotations

import re

from istio_init.errors import shown
from istio_init.errors_rare import SaveError
from istio_init.formats.addresses import PROTOCOLS
from istio_init.formats.iptables_lexer import WordReader, fits
from istio_init.formats.iptables_save import ALL_BITS, rule_text
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
    BUILTIN_CHAINS,
    Chain,
    Destination,
    DestinationPorts,
    InInterface,
    Jump,
    OutInterface,
    Owner,
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
from istio_init.model.unknown import ENTRY, Comment, UnknownMatch, UnknownTarget

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from istio_init.model.rules import Family, Match, TableName, Target

# The kernel's limits in bytes, without the final NUL: XT_EXTENSION_MAXNAMELEN, IFNAMSIZ, XT_MAX_COMMENT_LEN.
_CHAIN_NAME = 28
_INTERFACE_NAME = 15
_COMMENT = 255
# XT_MULTI_PORTS; a range takes two.
_MULTIPORT = 15

_PROTOCOL_NUMBERS = {name: number for number, name in PROTOCOLS.items()}
# The matches of the entry itself, in order; those of extensions follow.
# An address with a mask that is written as an address, since it has holes.
_MASKED = re.compile(r"[^/]+/[^/]*[.:][^/]*")
_ENTRY = (Source, Destination, InInterface, OutInterface, Protocol)


def parse(text: str, family: Family, *, foreign: bool = False) -> Ruleset:
    """The ruleset of a whole save, tables in the order in which a packet meets them.

    With `foreign`, extensions that are not known here become an UnknownMatch or UnknownTarget that keeps their options.
    SaveError names the line and the word.
    """
    tables: dict[TableName, Table] = {}
    numbered = enumerate(text.split("\n"), 1)
    lines = (WordReader(number, line) for number, line in numbered if line.strip(" \t") and line[0] != "#")
    for line in lines:
        word = line.word("a table")
        name = next((name for name in BUILTIN_CHAINS if word == f"*{name}" and name not in tables), None)
        if name is None:
            raise line.error(word, f"expected a table: *{', *'.join(BUILTIN_CHAINS)}, each at most once")
        line.end()
        tables[name] = _table(line, name, lines, family, foreign=foreign)
    return Ruleset(family, tuple(tables[name] for name in BUILTIN_CHAINS if name in tables))


def _table(
    opening: WordReader, name: TableName, lines: Iterator[WordReader], family: Family, *, foreign: bool
) -> Table:
    """The table whose `*name` was read: its chains, its rules, its COMMIT."""
    chains: dict[str, Chain] = {}
    rules: dict[str, list[Rule]] = {}
    for line in lines:
        word = line.word("a rule")
        if word == "COMMIT":
            line.end()
            full = {chain: empty.replace(rules=tuple(rules[chain])) for chain, empty in chains.items()}
            return Table(name, ordered(name, full))
        if word.startswith(":"):
            chain = _chain_declaration(line, word[1:], name)
            if chain.name in chains:
                raise line.error(word, "the chain is declared twice")
            chains[chain.name], rules[chain.name] = chain, []
        else:
            into = _chain_of_rule(line, word, chains)
            users = [chain.name for chain in chains.values() if not chain.policy]
            rules[into].append(_rule(line, family, users, foreign=foreign))
    raise opening.error(f"*{name}", "no COMMIT closes this table")


def _chain_declaration(line: WordReader, name: str, table: TableName) -> Chain:
    """The chain of a line `:NAME POLICY [packets:bytes]`, without rules."""
    if not name or name[0] in "-!" or not fits(name, _CHAIN_NAME):
        raise line.error(name, f"a chain's name has 1 to {_CHAIN_NAME} bytes and begins with neither - nor !")
    policy = line.word("a policy")
    allowed = ("ACCEPT", "DROP") if name in BUILTIN_CHAINS[table] else ("-",)
    if policy not in allowed:
        raise line.error(policy, f"the policy of {shown(name)} in {table} is {' or '.join(allowed)}")
    if line.more():
        _counters(line, line.word("counters"))
        line.end()
    return Chain(name, (), None if policy == "-" else policy)


def _chain_of_rule(line: WordReader, word: str, chains: Collection[str]) -> str:
    """The chain that a line `[packets:bytes] -A CHAIN ...` adds to; iptables-save -c prints the counters."""
    if word.startswith("["):
        _counters(line, word)
        word = line.word("-A")
    if word != "-A":
        raise line.error(word, "a rule (-A), a chain (:) or COMMIT expected")
    chain = line.word("a chain")
    if chain not in chains:
        raise line.error(chain, "no such chain is declared in this table")
    return chain


def _counters(line: WordReader, word: str) -> None:
    packets, _, count = word[1:-1].partition(":")
    if word != f"[{packets}:{count}]" or not all(part.isascii() and part.isdigit() for part in (packets, count)):
        raise line.error(word, "counters are [packets:bytes]")


def _rule(line: WordReader, family: Family, users: Collection[str], *, foreign: bool) -> Rule:
    """The rule after `-A CHAIN`; `users` are the user-defined chains that it may jump to."""
    entry: list[Match] = []
    extensions: list[Match] = []
    modules: list[str] = []
    target: Target = Verdict("")
    while line.more():
        negated, option = line.option()
        if option == "-m" and not negated:
            modules.append(line.word("a match"))
            extensions += _extension(line, modules[-1], foreign=foreign)
        elif option in ("-j", "-g") and not negated:
            target = _jump(line, users) if option == "-g" else _target(line, family, users, foreign=foreign)
            line.end()
        else:
            if foreign and (rare := _rare_entry(line, option, negated=negated)):
                entry.append(rare)
                continue
            match = _entry_match(line, option, family, negated=negated)
            if type(match) in map(type, entry):
                raise line.error(option, "is given twice in this rule")
            if not rule_text(Rule((match,), Verdict(""))):
                raise line.error(option, "matches every packet: leave it out")
            entry.append(match)
    entry.sort(key=_place)
    for module in modules:
        # A port match is for the protocol of its rule.
        if module in ("tcp", "udp") and Protocol(_PROTOCOL_NUMBERS[module]) not in entry:
            raise line.error(module, f"needs -p {module} in the same rule")
    return Rule((*entry, *extensions), target)


def _place(match: Match) -> int:
    """Where iptables-save prints a match of the header; fragments come last."""
    if isinstance(match, UnknownMatch):
        kinds: dict[str, type] = {"-s": Source, "-d": Destination, "-i": InInterface, "-o": OutInterface}
        kind = kinds.get((match.options or "").removeprefix("! ")[:2])
        return _ENTRY.index(kind) if kind else len(_ENTRY)
    return _ENTRY.index(type(match))


def _rare_entry(line: WordReader, option: str, *, negated: bool) -> UnknownMatch | None:
    """What other programs ask of a header and no other match holds: a mask with holes, fragments, no interface."""
    sign = "! " if negated else ""
    if option == "-f":
        options = f"{sign}-f"
    elif option in {"-s", "-d"} and _MASKED.fullmatch(line.peek()):
        options = f"{sign}{option} {line.word('an address')}"
    elif option in {"-i", "-o"} and negated and line.peek() == "+":
        options = f"! {option} {line.word('an interface')}"
    else:
        return None
    return UnknownMatch(ENTRY, -1, options.encode(), options)


def _entry_match(line: WordReader, option: str, family: Family, *, negated: bool) -> Match:
    """A match of the rule itself, without any extension."""
    match option:
        case "-s":
            return Source(line.network(family), negated)
        case "-d":
            return Destination(line.network(family), negated)
        case "-i":
            return InInterface(line.name("an interface", _INTERFACE_NAME), negated)
        case "-o":
            return OutInterface(line.name("an interface", _INTERFACE_NAME), negated)
        case "-p":
            word = line.word("a protocol")
            return Protocol(_PROTOCOL_NUMBERS.get(word) or line.number(word, "a protocol", 255, 1), negated)
        case _:
            raise line.error(option, "unknown option, or an option of a match without its -m")


def _extension(line: WordReader, module: str, *, foreign: bool) -> list[Match]:
    """All options of one `-m module`."""
    start = line.mark_place()
    try:
        matches = _modelled_extension(line, module)
        # One -m owner with several conditions is another match than several of them, and prints otherwise.
        if not (foreign and module == "owner" and len(matches) > 1):
            return matches
    except SaveError:
        if not foreign:
            raise
    line.go_back(start)
    options = line.options()
    return [UnknownMatch(module, -1, options.encode("utf-8", "surrogateescape"), options)]


def _modelled_extension(line: WordReader, module: str) -> list[Match]:
    extensions: dict[str, Match] = {}
    while line.long_option_follows():
        negated, option = line.option()
        if option in extensions:
            raise line.error(option, f"is given twice for -m {module}")
        extensions[option] = _extension_match(line, module, option, negated=negated)
    if not extensions:
        raise line.error(module, "unknown match, or one whose options are missing")
    # Source ports first, as iptables-save has them; no other match has a side.
    return sorted(extensions.values(), key=lambda match: isinstance(match, DestinationPorts))


def _extension_match(line: WordReader, module: str, option: str, *, negated: bool) -> Match:
    match module, option:
        case "tcp" | "udp", "--sport":
            return SourcePorts(line.ports(line.word("a port")), negated)
        case "tcp" | "udp", "--dport":
            return DestinationPorts(line.ports(line.word("a port")), negated)
        case "multiport", "--sports" | "--dports" | "--ports":
            return _multiport(line, option, negated=negated)
        case "owner", "--uid-owner" | "--gid-owner":
            ids = line.word("an id")
            low, _, high = ids.partition("-")
            first, last = (line.number(part, "an id", ALL_BITS) for part in (low, high or low))
            if first > last or ids.endswith("-"):
                raise line.error(ids, "not a range of ids")
            return Owner("uid" if option == "--uid-owner" else "gid", first, last, negated)
        case "mark", "--mark":
            return Mark(*line.mark(), negated)
        case "connmark", "--mark":
            return ConnMark(*line.mark(), negated)
        case "conntrack", "--ctstate":
            word = line.word("a state")
            states = word.split(",")
            if not set(states) <= set(CT_STATES):
                raise line.error(word, f"states are a comma list of {', '.join(CT_STATES)}")
            return CtState(tuple(state for state in CT_STATES if state in states), negated)
        case "comment", "--comment" if not negated:
            return Comment(line.name("a comment", _COMMENT))
        case _:
            raise line.error(option, f"not known of -m {shown(module)}")


def _multiport(line: WordReader, option: str, *, negated: bool) -> Multiport:
    word = line.word("a list of ports")
    ports = tuple(line.ports(part) for part in word.split(","))
    if sum(1 if part.low == part.high else 2 for part in ports) > _MULTIPORT:
        raise line.error(word, f"at most {_MULTIPORT} ports, a range counts as two")
    return Multiport(
        "sports" if option == "--sports" else "dports" if option == "--dports" else "ports", ports, negated
    )


def _jump(line: WordReader, users: Collection[str]) -> Jump:
    chain = line.word("a chain")
    if chain not in users:
        raise line.error(chain, "no such chain is declared in this table")
    return Jump(chain, goto=True)


def _target(line: WordReader, family: Family, users: Collection[str], *, foreign: bool) -> Target:
    """The target after -j. A name without options is a chain if one is declared, else an extension."""
    name = line.word("a target")
    start = line.mark_place()
    try:
        target = _modelled_target(line, name, family, users)
        line.end()
    except SaveError:
        if not foreign:
            raise
    else:
        return target
    line.go_back(start)
    options = line.options()
    return UnknownTarget(name, -1, options.encode("utf-8", "surrogateescape"), options)


def _modelled_target(line: WordReader, name: str, family: Family, users: Collection[str]) -> Target:
    match name:
        case "ACCEPT" | "DROP" | "RETURN" | "QUEUE":
            return Verdict(name)
        case _ if name in users:
            return Jump(name)
        case "REDIRECT":
            line.expect("--to-ports")
            return Redirect(line.ports(line.word("a port"), "-"))
        case "TPROXY":
            line.expect("--on-port")
            port = line.number(line.word("a port"), "a port", 65535)
            line.expect("--on-ip")
            address = line.address(family)
            line.expect("--tproxy-mark")
            return Tproxy(port, address, *line.mark())
        case "MARK":
            line.expect("--set-xmark")
            return SetMark(*line.mark())
        case "CONNMARK":
            action = line.word("--save-mark or --restore-mark")
            if action not in ("--save-mark", "--restore-mark"):
                raise line.error(action, "only --save-mark and --restore-mark are known of CONNMARK")
            line.expect("--nfmask")
            nfmask = line.mask()
            line.expect("--ctmask")
            return SaveMark(nfmask, line.mask()) if action == "--save-mark" else RestoreMark(nfmask, line.mask())
        case "CT":
            if not line.more():
                return CtZone(0)
            line.expect("--zone")
            return CtZone(line.number(line.word("a zone"), "a zone", 65535))
        case _:
            raise line.error(name, "unknown target, and no such chain is declared in this table")
