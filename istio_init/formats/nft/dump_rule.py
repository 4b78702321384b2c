"""One rule of an nft listing, read word by word as the rules of iptables that mean the same."""

from __future__ import annotations

import ipaddress
import re
from itertools import product
from typing import TYPE_CHECKING

from istio_init.formats.addresses import PROTOCOLS
from istio_init.formats.nft.mark_values import MarkValue
from istio_init.model.extensions import (
    CT_STATES,
    ConnMark,
    CtState,
    CtZone,
    Mark,
    Multiport,
    SetMark,
    Tproxy,
)
from istio_init.model.inet import iptables_name
from istio_init.model.parsers import network
from istio_init.model.rules import (
    IPV4,
    Destination,
    DestinationPorts,
    InInterface,
    Jump,
    OutInterface,
    Owner,
    PortRange,
    Protocol,
    Redirect,
    Source,
    SourcePorts,
    Verdict,
)
from istio_init.model.unclear import ALL_BITS
from istio_init.model.unknown import Comment, UnknownMatch, UnknownTarget

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Literal

    from istio_init.model.rules import Family, Match, Network, Target


_WORD = re.compile(r'"[^"]*"|[{}]|[^\s{},;]+|[,;]')

_NUMBERS = {name: number for number, name in PROTOCOLS.items()} | {"icmpv6": 58}

_OWNERS = {"skuid": "uid", "skgid": "gid"}

# The fields that a key may have.
SELECTORS = (
    *("ip saddr", "ip daddr", "ip protocol", "ip6 saddr", "ip6 daddr", "ip6 nexthdr", "tcp sport", "tcp dport"),
    *("udp sport", "udp dport", "th sport", "th dport", "l4proto", "iifname", "oifname", "iif", "oif", "mark"),
    *("ct state", "skuid", "skgid", "fib daddr type", "fib saddr type", "numgen random", "numgen inc"),
)
# What may follow an element's key or data.
OPTIONS = re.compile(r" (?:timeout|expires|counter|comment|limit|last) ")

_LOG_OPTIONS = frozenset({"prefix", "level", "group", "snaplen", "queue-threshold", "flags"})


class NotReadError(Exception):
    """An expression that has no translation."""


class RuleText:
    """The words of one rule, and, after read(), its `matches` and `target`; of each list in `either` one must match."""

    def __init__(self, line: str, family: Family, sets: dict[str, list[str]]) -> None:
        self._words, self._at, self._family, self._sets = _WORD.findall(line), 0, family, sets
        self.matches: list[Match] = []
        self.either: list[list[tuple[Match, ...]]] = []
        # Of a map: what each of its elements matches, and the target that it leads to.
        self.cases: list[tuple[tuple[Match, ...], Target]] = []
        self.target: Target = Verdict("")
        self.other_family = False

    def read(self) -> None:
        """Read all words. NotReadError and other errors leave what was read before; the rest is unknown."""
        while self._at < len(self._words):
            self._expression(self._next())

    def _next(self) -> str:
        self._at += 1
        word: str = self._words[self._at - 1]
        return word

    def _peek(self) -> str:
        return self._words[self._at] if self._at < len(self._words) else ""

    def _took(self, *words: str) -> bool:
        """Whether these words follow, which are then read."""
        here = tuple(self._words[self._at : self._at + len(words)]) == words
        self._at += len(words) if here else 0
        return here

    def _values(self) -> list[str]:
        """A value, those in braces, or those of a named set."""
        word = self._next()
        if word.startswith("@"):
            return self._sets[word[1:]]
        if word != "{":
            return [word]
        values = []
        while (word := self._next()) != "}":
            values += [word] if word != "," else []
        return values

    def _negated_values(self) -> tuple[bool, list[str]]:
        negated = self._took("!=")
        return negated, self._values()

    def _expression(self, word: str) -> None:  # noqa: C901, PLR0915 (one arm an expression)
        if self.cases and word not in {"counter", "comment"}:
            # What follows a map would be for each of its elements.
            raise NotReadError
        self._at -= 1
        if self._keyed():
            return
        self._at += 1
        match word:
            case "meta":
                self._expression(self._next())
            case "fib":
                self._route()
            case "icmp" | "icmpv6":
                self._next()
                self._negated_values()
                protocol = Protocol(_NUMBERS[word])
                self.matches += [*([] if protocol in self.matches else [protocol]), UnknownMatch(word, -1, b"", "")]
            case "counter":
                while self._peek() in {"packets", "bytes"}:
                    self._at += 2
            case "comment":
                self.matches.append(Comment(self._next().strip('"')))
            case "nfproto":
                self.other_family |= (self._next() == "ipv4") != (self._family == IPV4)
            case "ip" | "ip6":
                self.other_family |= (word == "ip") != (self._family == IPV4)
                self._header(self._next())
            case "iifname" | "oifname" | "iif" | "oif":
                negated, names = self._negated_values()
                kind = InInterface if word.startswith("i") else OutInterface
                self._add([kind(_interface(name.strip('"')), negated) for name in names], negated=negated)
            case "l4proto":
                negated, names = self._negated_values()
                self._add([Protocol(_NUMBERS.get(name) or int(name), negated) for name in names], negated=negated)
            case "tcp" | "udp":
                if Protocol(_NUMBERS[word]) not in self.matches:
                    self.matches.append(Protocol(_NUMBERS[word]))
                self._ports(self._next())
            case "th":
                self._ports(self._next())
            case "skuid" | "skgid":
                negated, ids = self._negated_values()
                self._add([Owner(_OWNERS[word], *_range(each), negated) for each in ids], negated=negated)  # type: ignore[arg-type]
            case "mark":
                self._mark(Mark)
            case "ct":
                self._connection(self._next())
            case "limit":
                self._took("rate")
                self._took("over")
                self._next()
                if self._took("burst"):
                    self._at += 2
                self.matches.append(UnknownMatch("limit", -1, b"", ""))
            case "xt":
                self._extension(self._next(), self._next().strip('"'))
            case _:
                self._verdict(word)

    def _keyed(self) -> bool:
        """Read a verdict map, or a set of several fields, if one follows: `ip daddr . tcp dport vmap @services`."""
        start = self._at
        selectors = self._selectors()
        if selectors and self._took("vmap"):
            for key, data in self._elements():
                target = self._data_verdict(data)
                self.cases += [(matches, target) for matches in alternatives(selectors, key, self._family)]
            return True
        if len(selectors) > 1 and self._peek() != "!=":
            keys = [key for key, _ in self._elements()]
            self.either.append([matches for key in keys for matches in alternatives(selectors, key, self._family)])
            return True
        self._at = start
        return False

    def _mapped(self, target: Callable[[str], Target]) -> bool:
        """Read a map of what a statement takes, if one follows: `dnat to tcp dport map { 80 : 10.0.0.1 }`."""
        start = self._at
        selectors = self._selectors()
        if not (selectors and self._took("map")):
            self._at = start
            return False
        for key, data in self._elements():
            self.cases += [(matches, target(data)) for matches in alternatives(selectors, key, self._family)]
        return True

    def _selectors(self) -> list[str]:
        """The fields that a key is made of; none where something else follows."""
        result = []
        while True:
            self._took("meta")
            words = next((each for each in SELECTORS if self._took(*each.split())), "")
            if words.startswith("numgen"):
                self._at += 2  # mod NUMBER
            if words.startswith(("ip ", "ip6 ")):
                self.other_family |= words.startswith("ip ") != (self._family == IPV4)
            if not words:
                return []
            result.append(words)
            if not self._took("."):
                return result

    def _elements(self) -> list[tuple[str, str]]:
        """Keys and data of a map in braces or by its name; of a set no data."""
        word = self._next()
        if word.startswith("@"):
            texts = self._sets[word[1:]]
        elif word == "{":
            words = []
            while (word := self._next()) != "}":
                words.append(word)
            texts = " ".join(words).split(",")
        else:
            raise NotReadError
        return [element(text) for text in texts if text.strip()]

    def _data_verdict(self, text: str) -> Target:
        words = text.split()
        match words:
            case ["accept" | "drop" | "return"]:
                return Verdict(words[0].upper())  # type: ignore[arg-type]
            case ["continue"]:
                return Verdict("")
            case ["jump" | "goto", chain]:
                return Jump(iptables_name(chain), words[0] == "goto")
            case _:
                raise NotReadError

    def _route(self) -> None:
        """`fib daddr type local`, or whether a route leads back: `fib saddr . iif oif missing`."""
        key = [self._next()]
        while self._took("."):
            key.append(self._next())
        result = self._next()
        if result == "type":
            negated, types = self._negated_values()
            side = {"saddr": "src", "daddr": "dst"}[key[0]]
            options = f"{'! ' if negated else ''}--{side}-type {','.join(types).upper()}"
            self.matches.append(UnknownMatch("addrtype", -1, options.encode(), options))
        elif result in {"oif", "oifname"} and key[0] == "saddr":
            missing = self._took("missing") or self._took("eq", "0") or self._took("0")
            if not missing and not self._took("exists"):
                raise NotReadError
            options = "--invert" if missing else ""
            self.matches.append(UnknownMatch("rpfilter", -1, options.encode(), options))
        else:
            raise NotReadError

    def _extension(self, kind: str, name: str) -> None:
        """An extension of iptables, of which nft prints the name alone."""
        if (kind, name) == ("match", "comment"):
            self.matches.append(Comment(""))
        elif kind == "match":
            self.matches.append(UnknownMatch(name, -1, name.encode()))
        else:
            self.target = UnknownTarget(name, -1, name.encode())

    def _add(self, matches: list[Match], *, negated: bool) -> None:
        if negated or len(matches) == 1:
            self.matches += matches
        else:
            self.either.append([(match,) for match in matches])

    def _header(self, field: str) -> None:
        if self._took("&"):
            self._networks(field, self._next())
            return
        negated, values = self._negated_values()
        if field in {"protocol", "nexthdr"}:
            self._add([Protocol(_NUMBERS.get(each) or int(each), negated) for each in values], negated=negated)
            return
        kinds: dict[str, type[Source | Destination]] = {"saddr": Source, "daddr": Destination}
        kind = kinds[field]
        networks = [each for text in values for each in _networks(text)]
        self._add([kind(each, negated) for each in networks], negated=negated)

    def _networks(self, field: str, mask: str) -> None:
        """An address without its last bits, looked up in a set: `ip daddr & 255.255.0.0 == @ipv4-1`."""
        self._took("==")
        negated, values = self._negated_values()
        prefix = f"{int(ipaddress.ip_address(mask)):b}".count("1")
        networks = [ipaddress.ip_network(f"{each}/{prefix}") for each in values]
        if any(str(each.netmask) != mask for each in networks):
            raise NotReadError
        kind: type[Source | Destination] = Source if field == "saddr" else Destination
        self._add([kind(network(str(each)), negated) for each in networks], negated=negated)

    def _ports(self, side: str) -> None:
        negated, values = self._negated_values()
        ranges = tuple(PortRange(*_range(each)) for each in values)
        if len(ranges) == 1:
            kinds: dict[str, type[SourcePorts | DestinationPorts]] = {"sport": SourcePorts, "dport": DestinationPorts}
            self.matches.append(kinds[side](ranges[0], negated))
        else:
            self.matches.append(Multiport({"sport": "sports", "dport": "dports"}[side], ranges, negated))  # type: ignore[arg-type]

    def _mark(self, kind: type[Mark | ConnMark]) -> None:
        if self._took("set"):
            field: Literal["mark", "ct mark"] = "ct mark" if kind is ConnMark else "mark"
            if isinstance(self.target, Tproxy):
                self.target = self.target.replace(mark=int(self._next(), 0), mask=ALL_BITS)
            elif kind is ConnMark or not self._mapped(lambda text: SetMark(int(text, 0))):
                self._sets_alone()
                self.target = self._mark_value().target(field)
            return
        mask = int(self._next(), 0) if self._took("&") or self._took("and") else ALL_BITS
        negated = self._took("!=")
        self._took("==")
        self.matches.append(kind(int(self._next(), 0), mask, negated))

    def _sets_alone(self) -> None:
        """NotReadError where another statement comes before: a rule of iptables has one target."""
        if self.target != Verdict(""):
            raise NotReadError

    def _mark_value(self) -> MarkValue:
        """What a mark is set to: a number, a mark with operations on its bits, or what a hash or chance gives."""
        word = self._next()
        if word in {"numgen", "jhash", "symhash"}:
            while self._next() != "mod":
                pass
            modulus, offset = int(self._next()), 0
            while self._took("seed"):
                self._next()
            if self._took("offset"):
                offset = int(self._next())
            return MarkValue("", 0, offset, modulus)
        if word == "meta":
            word = self._next()
        if word == "ct":
            word = f"ct {self._next()}"
        value = MarkValue(word, ALL_BITS) if word in {"mark", "ct mark"} else MarkValue("", 0, int(word, 0))  # type: ignore[arg-type]
        while (operation := self._peek()) in {"&", "and", "|", "or", "^", "xor"}:
            self._at += 1
            bits = int(self._next(), 0)
            keeps = {"&": bits, "and": bits, "|": ALL_BITS & ~bits, "or": ALL_BITS & ~bits}
            value = value.masked(keeps.get(operation, ALL_BITS), 0 if operation in {"&", "and"} else bits)
        return value

    def _connection(self, field: str) -> None:
        if field == "mark":
            self._mark(ConnMark)
        elif field == "status" and self._peek() in {"dnat", "snat"}:
            self.matches.append(CtState((self._next().upper(),)))
        elif field == "direction":
            options = f"--ctdir {self._next().upper()}"
            self.matches.append(UnknownMatch("conntrack", -1, options.encode(), options))
        elif field == "state":
            negated = self._took("!=")
            words = [self._next()]
            while self._took(","):
                words.append(self._next())
            states = {each.upper() for word in words for each in word.split(",")}
            self.matches.append(CtState(tuple(state for state in CT_STATES if state in states), negated))
        elif field == "zone" and self._took("set"):
            self.target = CtZone(int(self._next()))
        else:
            raise NotReadError

    def _verdict(self, word: str) -> None:  # noqa: C901 (one arm a statement)
        match word:
            case "accept" if isinstance(self.target, Tproxy):
                pass
            case "accept" | "drop" | "return" | "queue":
                # A mark that was set before an accept: one target alone has a place in a rule of iptables.
                if self.target != Verdict(""):
                    raise NotReadError
                self.target = Verdict(word.upper())  # type: ignore[arg-type]
                self._at = len(self._words) if word == "queue" else self._at
            case "jump" | "goto":
                self.target = Jump(iptables_name(self._next()), word == "goto")
            case "redirect":
                if not self._took("to"):
                    self.target = UnknownTarget("REDIRECT", -1, b"", "")
                    return
                if self._peek().startswith(":"):
                    self._words[self._at] = self._peek().removeprefix(":")
                    if not self._peek():
                        self._at += 1
                if self._mapped(lambda text: Redirect(PortRange(*_range(text)))):
                    return
                self.target = Redirect(PortRange(*_range(self._next().removeprefix(":"))))
            case "tproxy":
                self._took("ip") or self._took("ip6")
                self._took("to")
                port = int(self._next().rpartition(":")[2])
                self.target = Tproxy(port, bytes(4 if self._family == IPV4 else 16), 0, 0)
            case "dnat" | "snat":
                self._took("ip") or self._took("ip6")
                self._took("to")
                if not self._mapped(lambda text: _translation(word, text)):
                    self.target = _translation(word, self._next())
                while self._peek() in {"random", "fully-random", "persistent"}:
                    self._at += 1
            case "log":
                # Of a rule that does more than that, what else it does counts.
                while self._peek() in _LOG_OPTIONS:
                    self._at += 2
                if self._at == len(self._words) and self.target == Verdict(""):
                    self.target = UnknownTarget("LOG", -1, b"", "")
            case "masquerade" | "reject" | "notrack":
                name, options = ("CT", "--notrack") if word == "notrack" else (word.upper(), "")
                self._at = len(self._words)
                self.target = UnknownTarget(name, -1, options.encode(), options)
            case _:
                raise NotReadError


def element(text: str) -> tuple[str, str]:
    """The key of a set's or map's element, and its data; empty where it has none."""
    key, colon, data = text.strip().partition(" : ")
    if not colon:
        return OPTIONS.split(key)[0].strip(), ""
    return OPTIONS.split(key)[0].strip(), OPTIONS.split(data)[0].strip()


def alternatives(selectors: list[str], key: str, family: Family) -> list[tuple[Match, ...]]:
    """What packets match that have a key, each a list of matches of which all must hold."""
    if key == "*":
        return [()]
    values = key.split(" . ")
    if len(values) != len(selectors):
        raise NotReadError
    parts = [_field(each, value.strip(), family) for each, value in zip(selectors, values, strict=True)]
    return [tuple(match for some in choice for match in some) for choice in product(*parts)]


def _field(selector: str, value: str, family: Family) -> list[tuple[Match, ...]]:
    match selector.split():
        case ["ip" | "ip6", "saddr" | "daddr" as side]:
            kind = Source if side == "saddr" else Destination
            return [(kind(each),) for each in _networks(value) if each.family == family]
        case ["ip", "protocol"] | ["ip6", "nexthdr"] | ["l4proto"]:
            return [(Protocol(_NUMBERS.get(value) or int(value)),)]
        case ["tcp" | "udp" | "th" as protocol, "sport" | "dport" as side]:
            ports = (SourcePorts if side == "sport" else DestinationPorts)(PortRange(*_range(value)))
            return [(ports,) if protocol == "th" else (Protocol(_NUMBERS[protocol]), ports)]
        case ["iifname" | "iif" | "oifname" | "oif" as side]:
            return [((InInterface if side.startswith("i") else OutInterface)(_interface(value.strip('"'))),)]
        case ["mark"]:
            return [(Mark(int(value, 0)),)]
        case ["ct", "state"]:
            return [(CtState((value.upper(),)),)]
        case ["skuid" | "skgid" as owner]:
            return [(Owner(_OWNERS[owner], *_range(value)),)]  # type: ignore[arg-type]
        case ["fib", side, "type"]:
            options = f"--{side[0].replace('d', 'dst').replace('s', 'src')}-type {value.upper()}"
            return [(UnknownMatch("addrtype", -1, options.encode(), options),)]
        case _:
            # Chance: any of them.
            return [(UnknownMatch("statistic", -1, b"", "--mode random"),)]


def _translation(word: str, text: str) -> UnknownTarget:
    """A target of iptables for `dnat to` or `snat to`; a map has address and port apart."""
    address, dot, port = text.partition(" . ")
    where = f"{f'[{address}]' if ':' in address else address}:{port}" if dot else text
    options = f"--to-{'destination' if word == 'dnat' else 'source'} {where}"
    return UnknownTarget(word.upper(), -1, options.encode(), options)


def _interface(name: str) -> str:
    """An interface's name as iptables has it: a last asterisk means any rest, one behind a backslash itself."""
    if name.endswith("\\*"):
        return f"{name[:-2]}*"
    return f"{name[:-1]}+" if name.endswith("*") else name


def _networks(text: str) -> list[Network]:
    """An address, a CIDR, or a range of addresses as the CIDRs that make it up."""
    low, dash, high = text.partition("-")
    if not dash:
        return [network(text)]
    ends = ipaddress.ip_address(low), ipaddress.ip_address(high)
    return [network(str(each)) for each in ipaddress.summarize_address_range(*ends)]


def _range(text: str) -> tuple[int, int]:
    low, _, high = text.partition("-")
    return int(low), int(high or low)
