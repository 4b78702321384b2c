"""Parts of manual pages in mdoc(7)."""

from __future__ import annotations

import re
from textwrap import wrap
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

WIDTH = 78  # of a line, as mandoc's lint wants it


def name(title: str, about: str) -> Iterator[str]:
    yield from (".Sh NAME", f".Nm {title}", f".Nd {about}")


def section(title: str, *paragraphs: str) -> Iterator[str]:
    yield f".Sh {title}"
    for at, paragraph in enumerate(paragraphs):
        if at:
            yield ".Pp"
        yield from sentences(paragraph)


def listed(entries: Iterable[tuple[str, str]]) -> Iterator[str]:
    """A list of tagged entries: what begins each, and its text; nothing where there are none."""
    some = list(entries)
    if some:
        yield ".Bl -tag -width Ds"
        for begin, text in some:
            yield begin
            yield from sentences(text)
        yield ".El"


def exits(codes: dict[int, str]) -> Iterator[str]:
    yield ".Sh EXIT STATUS"
    yield from listed((f".It {code}", text) for code, text in codes.items())


def examples(some: dict[str, str]) -> Iterator[str]:
    yield ".Sh EXAMPLES"
    for at, (title, command) in enumerate(some.items()):
        if at:
            yield ".Pp"
        yield from sentences(title)
        yield from (".Bd -literal -offset indent", literal(command), ".Ed")


def see_also(*pages: str) -> Iterator[str]:
    yield ".Sh SEE ALSO"
    ordered = sorted(pages, key=lambda each: (each[-1], each))
    yield from (f".Xr {each}{' ,' if each != ordered[-1] else ''}" for each in ordered)


def parameter(each: Any) -> tuple[str, str]:  # noqa: ANN401 (Typer's)
    """A verb's own parameter."""
    if each.param_type_name == "argument":
        return f".It Ar {quoted(each.metavar)}", each.help
    value = "" if each.is_flag else f" Ar {quoted(each.metavar)}"
    default = f" Default: {each.default}." if each.default and not each.is_flag else ""
    names = " , ".join(f"Fl {flag_text(name[1:])}" for name in (*each.opts, *each.secondary_opts))
    return f".It {names}{value}", each.help + default


def quoted(text: str) -> str:
    """An argument of a macro, whatever is in it."""
    return '"' + flag_text(text).replace('"', '""') + '"' if re.search(r"[^\w./-]", text) else flag_text(text)


def flag_text(text: str) -> str:
    r"""A text whose hyphens are typed: groff's own would not be found by those who search for --flag."""
    return text.replace("\\", "\\e").replace("-", "\\-")


def literal(text: str) -> str:
    return flag_text(text).replace("'", "\\(aq")


def sentences(text: str) -> Iterator[str]:
    """A text, each sentence on a line of its own."""
    for sentence in re.split(r"(?<=[.:])(?<!e\.g\.) +(?=[A-Z/-])", text.strip()):
        # An apostrophe in a word is one; other single quotes are typed.
        words = re.sub(r"'(?![a-z ])|(?<![a-z])'", r"\\(aq", flag_text(sentence))
        for line in wrap(words, WIDTH, break_long_words=False, break_on_hyphens=False):
            yield f"\\&{line}" if line.startswith((".", "'")) else line
