"""Splits a line of iptables-save text into words as iptables-restore does, and parses the words."""

from __future__ import annotations

from istio_init.errors import shown
from istio_init.errors_rare import SaveError
from istio_init.formats.addresses import network_text
from istio_init.formats.iptables_save import ALL_BITS
from istio_init.model.parsers import network, number
from istio_init.model.rules import PortRange

TYPE_CHECKING = False
if TYPE_CHECKING:
    from istio_init.model.rules import Family, Network


def fits(text: str, limit: int) -> bool:
    """Whether a name fits the kernel's field: at most `limit` bytes, none of them NUL."""
    return "\0" not in text and len(text.encode("utf-8", "surrogatepass")) <= limit


class WordReader:
    """The words of one line, read one by one as names, numbers and addresses."""

    __slots__ = ("_at", "_number", "_spellings", "_words")

    def __init__(self, number: int, text: str) -> None:
        self._number = number
        self._at = 0
        try:
            pairs = _words(text)
        except IndexError:
            raise self.error(text, "a quote is not closed") from None
        self._words = [word for word, _ in pairs]
        self._spellings = [spelling for _, spelling in pairs]

    def error(self, word: str, why: str) -> SaveError:
        """The error to raise about one word of this line."""
        return SaveError(f"line {self._number}: {shown(word)}: {why}")

    def more(self) -> bool:
        """Whether a word is left."""
        return self._at < len(self._words)

    def end(self) -> None:
        """Require that no word is left."""
        if self.more():
            raise self.error(self._words[self._at], "unexpected at the end of the line")

    def word(self, what: str) -> str:
        """The next word, which is to be `what`."""
        if not self.more():
            raise self.error(self._words[-1], f"{what} is missing after this")
        self._at += 1
        return self._words[self._at - 1]

    def expect(self, expected: str) -> None:
        """Take exactly this word."""
        if (word := self.word(expected)) != expected:
            raise self.error(word, f"{expected} is required here")

    def option(self) -> tuple[bool, str]:
        """Whether the next option is negated by a !, and the option."""
        word = self.word("an option")
        return (True, self.word("an option")) if word == "!" else (False, word)

    def long_option_follows(self) -> bool:
        """Whether the next option belongs to an extension."""
        upcoming = [word for word in self._words[self._at : self._at + 2] if word != "!"]
        return bool(upcoming) and upcoming[0].startswith("--")

    def peek(self) -> str:
        """The next word, which is not read; empty at the end of the line."""
        return self._words[self._at] if self.more() else ""

    def mark_place(self) -> int:
        """The place of the next word, to go back to."""
        return self._at

    def go_back(self, place: int) -> None:
        """Read on from a place again."""
        self._at = place

    def options(self) -> str:
        """All words up to the next -m, -j or -g, which are an extension's options, as the line spells them."""
        start = self._at
        while self.more() and self._words[self._at] not in {"-m", "-j", "-g"}:
            self._at += 1
        return " ".join(self._spellings[start : self._at])

    def name(self, what: str, limit: int) -> str:
        """The next word, if it fits the kernel's field of `limit` bytes."""
        word = self.word(what)
        if not fits(word, limit):
            raise self.error(word, f"{what} has at most {limit} bytes, and no NUL")
        return word

    def network(self, family: Family) -> Network:
        """The next word as an address or CIDR of the family."""
        word = self.word("an address")
        try:
            value = network(word)
        except ValueError as error:
            raise self.error(word, str(error)) from None
        if value.family != family:
            raise self.error(word, f"not an address of {family}")
        return value

    def address(self, family: Family) -> bytes:
        """The next word as an address of the family, packed."""
        value = self.network(family)
        if value.prefix != len(value.address) * 8:
            raise self.error(network_text(value), "use an address, not a CIDR")
        return value.address

    def number(self, word: str, what: str, highest: int, lowest: int = 0) -> int:
        """A word of this line, or a part of one, as a decimal number."""
        try:
            return number(word, lowest, highest, what)
        except ValueError as error:
            raise self.error(word, str(error)) from None

    def ports(self, word: str, dash: str = ":") -> PortRange:
        """A word of this line, or a part of one, as a port or a range."""
        first, between, last = word.partition(dash)
        low = self.number(first, "a port", 65535)
        high = self.number(last, "a port", 65535) if between else low
        if low > high:
            raise self.error(word, "the range ends before it begins")
        return PortRange(low, high)

    def bits(self, word: str) -> int:
        """A word of this line, or a part of one, as 32 bits in hexadecimal."""
        digits = word.removeprefix("0x")
        if digits == word or not 1 <= len(digits) <= 8 or not set(digits) <= set("0123456789abcdef"):
            raise self.error(word, "marks and masks are written 0x0 to 0xffffffff")
        return int(digits, 16)

    def mask(self) -> int:
        """The next word as a mask."""
        return self.bits(self.word("a mask"))

    def mark(self) -> tuple[int, int]:
        """The next word as a mark and its mask."""
        word = self.word("a mark")
        value, slash, mask = word.partition("/")
        return self.bits(value or word), self.bits(mask or word) if slash else ALL_BITS


def _words(text: str) -> list[tuple[str, str]]:
    """A line's words, split as iptables-restore does it, and how they are spelled; IndexError for an unclosed quote."""
    words = []
    at = 0
    while at < len(text):
        start = at
        if text[at] in " \t":
            at += 1
        elif text[at] == '"':
            word, at = _quoted_word(text, at + 1)
            words.append((word, text[start:at]))
        else:
            while at < len(text) and text[at] not in " \t":
                at += 1
            words.append((text[start:at], text[start:at]))
    return words


def _quoted_word(text: str, at: int) -> tuple[str, int]:
    """The quoted word that begins at `at`, and the position after its closing quote."""
    word = ""
    while text[at] != '"':
        at += text[at] == "\\"
        word += text[at]
        at += 1
    return word, at + 1
