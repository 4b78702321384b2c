"""A manual page for each verb of `istio-init`: its flags, the options that it takes, exit codes, examples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from istio_init.cli.help_page import EXAMPLES
from istio_init.options.table import OPTIONS
from scripts.generate import mdoc

if TYPE_CHECKING:
    from collections.abc import Iterator

# Beside what every verb ends with.
VERB_EXITS = {
    "apply": {126: "The rules are applied, and --run-validation failed."},
    "check": {0: "In place.", 3: "Drifted.", 4: "Absent.", 1: "That can't be determined."},
    "options": {0: "Exact.", 3: "Rules remain that no options explain.", 4: "No Istio rules."},
    "diagnose": {0: "Healthy.", 3: "A fault.", 4: "It cannot be known."},
    "doctor": {1: "Something would fail."},
    "inject": {1: "With --check: something would change."},
    "prove": {1: "A packet breaks what the options promise."},
    "cni repair": {0: "No pod is left uncaptured.", 3: "Drifted.", 4: "Uncaptured.", 1: "Some are not known."},
    "cni status": {1: "The plugin is not in place."},
}
EXITS = {
    0: "Done.",
    1: "An error: one line on standard error says what is wrong and what to do.",
    255: "The command line could not be understood.",
}
# What decides how a verb prints.
ENVIRONMENT = {
    "NO_COLOR": "No colours, unless --color says otherwise.",
    "ISTIO_INIT_PAGER": "What long answers go to on a terminal; empty for none. Else PAGER, else less.",
}
# What all verbs take, at the end of a page.
SHARED = {"color", "no_pager", "help_all"}


def file_name(verb: str) -> str:
    """The file of a verb's page; of one of cni's, both words."""
    return f"istio-init-{verb.replace(' ', '-')}.1"


def lines(verb: str, command: Any) -> Iterator[str]:  # noqa: ANN401 (Typer's)
    """The page of a verb, without its head."""
    about, *more = command.help.split("\n\n")
    about = " ".join(about.split())
    yield from mdoc.name(
        f"istio-init-{verb.replace(' ', '-')}", about[0].lower() + about[1:].partition(":")[0].rstrip(".")
    )
    yield from (".Sh SYNOPSIS", f".Nm istio-init {verb}", ".Op Ar option ...")
    yield from mdoc.section("DESCRIPTION", about, *(" ".join(each.split()) for each in more))
    # The verbs of cni take no option of the table, but some have one of the same name.
    table = set() if verb.startswith("cni ") else {each.field for each in OPTIONS}
    own = [each for each in command.params if each.name not in table | {"help"}]
    own.sort(key=lambda each: each.name in SHARED)
    yield from mdoc.listed(mdoc.parameter(each) for each in own)
    taken = [each for each in OPTIONS if each.field in {parameter.name for parameter in command.params} & table]
    if taken:
        yield ".Pp"
        flags = ", ".join(f"--{each.flag}" for each in taken)
        yield from mdoc.sentences(f"It takes these options of istio-iptables(1), which has what they mean: {flags}.")
    yield ".Sh ENVIRONMENT"
    yield from mdoc.listed((f".It Ev {name}", text) for name, text in ENVIRONMENT.items())
    if taken:
        yield ".Pp"
        yield from mdoc.sentences("Options that are not given are read from the variables that istio-iptables(1) has.")
    yield from mdoc.exits(dict(sorted({**EXITS, **VERB_EXITS.get(verb, {})}.items())))
    yield from mdoc.examples({f"{what}:": line for what, line in EXAMPLES.get(verb, ())})
    yield from mdoc.see_also("istio-init 1", "istio-iptables 1")
