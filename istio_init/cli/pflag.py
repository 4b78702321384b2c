"""Translates Istio's flag syntax (spf13/pflag) to Typer's.

Every value is joined to its flag, aliases become the flag's own name, combined short switches are separated, and flags
without effect are dropped. Tokens that belong to no option of the table are kept as they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from istio_init.errors import shown
from istio_init.errors_rare import OptionError, UsageError
from istio_init.model.parsers import boolean
from istio_init.options.argv import SHORT, WITHOUT_EFFECT, long_option, skip

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from istio_init.options.table import Option


def normalised(argv: Sequence[str], shorts_taken: Collection[str] = ()) -> list[str]:
    """The command line as Typer reads it; raises UsageError for a wrong value of a switch or a flag without effect.

    `shorts_taken` are short flags that mean something else in this command.
    """
    tokens: list[str] = []
    rest = iter(argv)
    for word in rest:
        if word == "--":
            tokens += [word, *rest]
        elif word.startswith("--"):
            tokens += _long(word, rest)
        elif word.startswith("-") and word != "-" and word[1] not in shorts_taken:
            tokens += _short(word, rest)
        else:
            tokens.append(word)
    return tokens


def _long(word: str, rest: Iterator[str]) -> list[str]:
    flag, equals, text = word.partition("=")
    attached = text if equals else None
    if flag in WITHOUT_EFFECT:
        return _skipped(flag, attached, rest)
    if flag in {"--help", "--help-all"} and attached is not None:
        return _help(flag, attached)
    option = long_option(flag)
    if flag == "--netns":
        text = next(rest, "") if attached is None else attached
        if not text.strip():
            # An unset shell variable, for example: the user does not mean the caller's own namespace.
            raise OptionError(flag, text, "empty: name one, or leave the flag out for the namespace of this process")
        attached = text
    return [word] if option is None else _spelled(option, attached, rest)


def _short(word: str, rest: Iterator[str]) -> list[str]:
    tokens: list[str] = []
    while True:
        flag, rest_of_word = word[:2], word[2:]
        option = SHORT.get(flag)
        switch = option.switch if option else WITHOUT_EFFECT.get(flag) == "switch"
        attached = rest_of_word.removeprefix("=") if rest_of_word and (rest_of_word[0] == "=" or not switch) else None
        if option is not None:
            tokens += _spelled(option, attached, rest)
        elif flag in WITHOUT_EFFECT:
            tokens += _skipped(flag, attached, rest)
        elif flag == "-h" and rest_of_word.startswith("="):
            return [*tokens, *_help(flag, rest_of_word[1:])]
        else:
            return [*tokens, word]
        if not switch or not rest_of_word or attached is not None:
            return tokens
        word = f"-{rest_of_word}"


def _spelled(option: Option, attached: str | None, rest: Iterator[str]) -> list[str]:
    if option.switch:
        try:
            on = attached is None or boolean(attached)
        except ValueError as error:
            raise UsageError(f"{option.names()}: {shown(attached or '')}: {error}") from None
        return [f"--{option.flag}" if on else f"--no-{option.flag}"]
    text = next(rest, None) if attached is None else attached
    return [f"--{option.flag}" if text is None else f"--{option.flag}={text}"]


def _help(flag: str, text: str) -> list[str]:
    """A switch of this program's, which takes a value as Istio's does."""
    try:
        return [flag] if boolean(text) else []
    except ValueError as error:
        raise UsageError(f"{flag}: {shown(text)}: {error}") from None


def _skipped(flag: str, attached: str | None, rest: Iterator[str]) -> list[str]:
    if not skip(flag, attached, rest):
        kind = "true or false" if WITHOUT_EFFECT[flag] == "switch" else f"a {WITHOUT_EFFECT[flag]}"
        raise UsageError(f"{flag}: {shown(attached or '')}: takes {kind}; it has no effect and can be left out")
    return []
