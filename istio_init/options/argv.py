"""The fast parser: argv to the text of each option, with next to nothing imported.

It reads what Istio's program reads (spf13/pflag): --flag VALUE, --flag=VALUE, -f VALUE, -fVALUE, -f=VALUE; a switch is
--flag or --flag=true, and short ones may be joined (-np 15001). Help, completion and mistakes give None and are left to
Typer, which owns every message. It never takes what Typer refuses and means the same by what it takes; a property-based
test compares the two.
"""

from __future__ import annotations

from istio_init.errors import InitError
from istio_init.model.parsers import ALL
from istio_init.options.table import (
    OPTIONS,
    PROBE_PORT,
    PROBE_TIMEOUT,
    SWITCH_VALUES,
    TPROXY_MARK,
    TPROXY_TABLE,
    Option,
    Options,
    resolve,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from istio_init.options.table import Lookup

# The variable by which a shell asks Typer for completions, with an empty command line.
COMPLETION_VARIABLE = "_ISTIO_IPTABLES_COMPLETE"

SHORT = {f"-{each.short}": each for each in OPTIONS if each.short}
_FURTHER = {f"--{alias}": each for each in OPTIONS if each.further for alias in each.further}

# Flags that Istio's programs take, of this release or an older one, and that mean nothing here: what kind of value each
# has. pilot-agent adds klog's verbosity and its log's rotation to every command.
WITHOUT_EFFECT = {
    "--vklog": "number",
    "--log_rotate": "text",
    "--log_rotate_max_age": "number",
    "--log_rotate_max_size": "number",
    "--log_rotate_max_backups": "number",
    "--host-nsenter-exec": "switch",
    "--iptables-trace-logging": "switch",
    "--restore-format": "switch",
    "-f": "switch",
}


def long_option(flag: str) -> Option | None:
    """The option of a flag such as --proxy-uid; None where there is none.

    Found by the name of its field: a command line has a handful of flags, and a table of all would take longer to make.
    """
    option = Options.specifiers.get(flag[2:].replace("-", "_"))
    if option and flag[2:] in {option.flag, *option.aliases}:
        checked: Option = option
        return checked
    return _FURTHER.get(flag)


def parse(argv: Sequence[str], stray: list[str] | None = None) -> dict[str, str] | None:
    """The text of each option in argv, by field, the last one if it is given twice; None for anything unusual.

    Words that belong to no flag go to `stray`, since pflag ignores them; without such a list they are unusual.
    """
    texts: dict[str, str] = {}
    rest = iter(argv)
    for word in rest:
        if word[:1] != "-" or word in {"-", "--"}:
            if stray is None:
                return None
            stray.extend(rest if word == "--" else (word,))
            continue
        pairs = _long(word, rest) if word.startswith("--") else _short(word, rest)
        if pairs is None:
            return None
        for option, text in pairs:
            joined = option.repeats and option.field in texts
            texts[option.field] = f"{texts[option.field]},{text}" if joined else text
    return texts


def _long(word: str, rest: Iterator[str]) -> tuple[tuple[Option, str], ...] | None:
    flag, equals, text = word.partition("=")
    option = long_option(flag)
    if option is not None:
        pair = _value(option, text if equals else None, rest)
        # Typer refuses --netns without a name: an unset shell variable does not mean the caller's own namespace.
        return None if pair is None or (flag == "--netns" and not pair[1].strip()) else (pair,)
    if flag.startswith("--no-") and (switch := long_option(f"--{flag[5:]}")) and switch.switch:
        return None if equals else ((switch, "false"),)
    if flag in WITHOUT_EFFECT and skip(flag, text if equals else None, rest):
        return ()
    return None


def _short(word: str, rest: Iterator[str]) -> tuple[tuple[Option, str], ...] | None:
    """The options in a word such as -np15001."""
    pairs: list[tuple[Option, str]] = []
    while True:
        flag, rest_of_word = word[:2], word[2:]
        option = SHORT.get(flag)
        switch = option.switch if option else WITHOUT_EFFECT.get(flag) == "switch"
        attached = rest_of_word.removeprefix("=") if rest_of_word and (rest_of_word[0] == "=" or not switch) else None
        if option is not None:
            pair = _value(option, attached, rest)
            if pair is None:
                return None
            pairs.append(pair)
        elif flag not in WITHOUT_EFFECT or not skip(flag, attached, rest):
            return None
        if not switch or not rest_of_word or attached is not None:
            return tuple(pairs)
        word = f"-{rest_of_word}"


def _value(option: Option, attached: str | None, rest: Iterator[str]) -> tuple[Option, str] | None:
    if option.switch:
        # Checked here, too: of an option given twice resolve() sees the last only.
        return (option, attached or "true") if attached is None or attached in SWITCH_VALUES else None
    text = next(rest, None) if attached is None else attached
    return None if text is None else (option, text)


def skip(flag: str, attached: str | None, rest: Iterator[str]) -> bool:
    """Pass over a flag without effect and its value; False if the value is missing or wrong."""
    kind = WITHOUT_EFFECT[flag]
    if kind == "switch":
        return attached is None or attached in SWITCH_VALUES
    text = next(rest, None) if attached is None else attached
    if text is None:
        return False
    return kind == "text" or (text.removeprefix("-").isdecimal() and text.isascii())


def options(
    argv: Sequence[str], environ: Mapping[str, str], lookup: Lookup, warnings: list[str] | None = None
) -> Options | None:
    """The Options of a command line, or None if Typer has to look at it; `warnings` gets what a user should know."""
    stray: list[str] = []
    texts = None if COMPLETION_VARIABLE in environ else parse(argv, stray)
    if texts is None:
        return None
    if warnings is not None and stray:
        warnings.append(stray_words(stray))
    try:
        parsed = resolve(texts, environ, lookup, warnings=warnings)
    except InitError:
        return None
    if warnings is not None and dubious(parsed):
        from istio_init.options.contradictions import contradictions

        warnings += contradictions(parsed)
    return parsed


def dubious(options: Options) -> bool:
    """Whether options may contradict each other: cheap to find out, and true for few runs.

    contradictions.py says which do and why; what it finds is dubious, as a property-based test holds.
    """
    return bool(
        (options.istio_local_exclude_ports and options.istio_inbound_ports != ALL)
        or (options.istio_outbound_ports and options.istio_service_cidr == ALL)
        or (
            not options.istio_service_cidr
            and (options.istio_service_exclude_cidr or options.istio_local_outbound_ports_exclude)
        )
        or (options.istio_outbound_owner_groups_exclude and options.istio_outbound_owner_groups != ALL)
        or (options.capture_all_dns and (options.dns_servers or not options.redirect_dns))
        or (options.dns_servers and not options.redirect_dns)
        or (options.dual_stack and options.enable_ipv6 is not None)
        or (options.istio_inbound_tproxy_mark != TPROXY_MARK and options.istio_inbound_interception_mode != "TPROXY")
        or (
            options.istio_inbound_tproxy_route_table != TPROXY_TABLE
            and options.istio_inbound_interception_mode != "TPROXY"
        )
        or (options.probe_timeout != PROBE_TIMEOUT and not options.run_validation)
        or (options.iptables_probe_port != PROBE_PORT and not options.run_validation)
        or ((options.cleanup_only or options.skip_rule_apply) and (options.reconcile or options.force_apply))
    )


def stray_words(words: Sequence[str]) -> str:
    """The warning for words that belong to no flag."""
    from istio_init.errors import shown

    return f"{shown(' '.join(words))}: ignored: belongs to no flag; a switch takes its value as in --dry-run=false"
