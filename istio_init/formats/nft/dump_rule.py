"""One rule of an nft listing, read word by word as the rules of iptables that mean the same."""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING

from istio_init.formats.addresses import PROTOCOLS
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
from istio_init.model.unknown import Comment, UnknownMatch, UnknownTarget

if TYPE_CHECKING:
    from istio_init.model.rules import Family, Match, Network, Target


_WORD = re.compile(r'"[^"]*"|[{}]|[^\s{},;]+|[,;]')

_NUMBERS = {name: number for number, name in PROTOCOLS.items()} | {"icmpv6": 58}

_OWNERS = {"skuid": "uid", "skgid": "gid"}

EVERY = 0xFFFFFFFF

_LOG_OPTIONS = frozenset({"prefix", "level", "group", "snaplen", "queue-threshold", "flags"})


class NotReadError(Exception):
    """An expression that has no translation."""


class RuleText:
    """The words of one rule, and, after read(), its `matches` and `target`; of each list in `either` one must match."""

    def __init__(self, line: str, family: Family, sets: dict[str, list[str]]) -> None:
        self._words, self._at, self._family, self._sets = _WORD.findall(line), 0, family, sets
        self.matches: list[Match] = []
        self.either: list[list[Match]] = []
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

    def _expression(self, word: str) -> None:  # noqa: C901 (one arm an expression)
        match word:
            case "meta":
                self._expression(self._next())
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
            case "iifname" | "oifname":
                negated, names = self._negated_values()
                kind = InInterface if word == "iifname" else OutInterface
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
            self.either.append(matches)

    def _header(self, field: str) -> None:
        negated, values = self._negated_values()
        if field in {"protocol", "nexthdr"}:
            self._add([Protocol(_NUMBERS.get(each) or int(each), negated) for each in values], negated=negated)
            return
        kinds: dict[str, type[Source | Destination]] = {"saddr": Source, "daddr": Destination}
        kind = kinds[field]
        networks = [each for text in values for each in _networks(text)]
        self._add([kind(each, negated) for each in networks], negated=negated)

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
            if kind is ConnMark:
                if not (self._took("meta", "mark") or self._took("mark")):
                    raise NotReadError
                self.target = SaveMark()
            elif isinstance(self.target, Tproxy):
                self.target = self.target.replace(mark=int(self._next(), 0), mask=EVERY)
            else:
                self.target = RestoreMark() if self._took("ct", "mark") else SetMark(int(self._next(), 0))
            return
        mask = int(self._next(), 0) if self._took("&") or self._took("and") else EVERY
        negated = self._took("!=")
        self._took("==")
        self.matches.append(kind(int(self._next(), 0), mask, negated))

    def _connection(self, field: str) -> None:
        if field == "mark":
            self._mark(ConnMark)
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

    def _verdict(self, word: str) -> None:
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
                self._took("to")
                self.target = Redirect(PortRange(*_range(self._next().removeprefix(":"))))
            case "tproxy":
                self._took("ip") or self._took("ip6")
                self._took("to")
                port = int(self._next().rpartition(":")[2])
                self.target = Tproxy(port, bytes(4 if self._family == IPV4 else 16), 0, 0)
            case "dnat" | "snat":
                self._took("ip") or self._took("ip6")
                self._took("to")
                options = f"--to-{'destination' if word == 'dnat' else 'source'} {self._next()}"
                self.target = UnknownTarget(word.upper(), -1, options.encode(), options)
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
