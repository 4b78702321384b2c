"""The command `istio-init`: `apply` and `clean` change a namespace; the other verbs inspect a plan or the kernel.

Every verb takes the options of `istio-iptables` that have an effect in it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from istio_init.cli import help_page, terminal, typer_options, typer_parameters
from istio_init.cli.verbs import acting, cni
from istio_init.cli.verbs.check import check
from istio_init.cli.verbs.diagnose import OFFERED as PLACES
from istio_init.cli.verbs.diagnose import diagnose
from istio_init.cli.verbs.doctor import doctor
from istio_init.cli.verbs.draw import draw
from istio_init.cli.verbs.explain import explain
from istio_init.cli.verbs.inject import OFFERED, SHORTS, inject
from istio_init.cli.verbs.manifest import manifest
from istio_init.cli.verbs.options import options
from istio_init.cli.verbs.plan import plan
from istio_init.cli.verbs.prove import prove
from istio_init.cli.verbs.show import show, spelled_out

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from istio_init.options.table import Option

PROGRAM = "istio-init"
SHARED = typer_parameters.TERMINAL
HELP = "Program a pod's network namespace for a sidecar proxy, and inspect the rules."


APPLY = "Apply the plan: the same as istio-iptables with these options."
CLEAN = "Remove all Istio rules: the same as istio-clean-iptables."

# Options that only matter to a run that changes the namespace.
ACTING = frozenset(
    {"dry_run", "reconcile", "force_apply", "cleanup_only", "skip_rule_apply", "run_validation", "probe_timeout"}
    | {"iptables_probe_port", "wait", "cni_mode", "ip_family"}
)
# The options that each verb does not take. `plan` predicts a run, and `doctor` inspects what a run would find.
WITHOUT: Mapping[str, frozenset[str]] = {
    "apply": frozenset(),
    "clean": frozenset({"reconcile", "force_apply", "cleanup_only", "skip_rule_apply", "run_validation"})
    | {"probe_timeout", "iptables_probe_port"},
    "plan": ACTING - {"reconcile", "force_apply", "cleanup_only", "skip_rule_apply"},
    "doctor": ACTING - {"reconcile", "cleanup_only", "run_validation", "wait", "cni_mode"},
    "options": ACTING,
    "manifest": frozenset({"dry_run", "network_namespace", "ip_family"}),
    # Whether rules of a family that the options do not manage are drift depends on --reconcile.
    **dict.fromkeys(("check", "show"), ACTING - {"reconcile"}),
    **dict.fromkeys(("draw", "explain", "prove"), ACTING),
}
VERBS = frozenset({*WITHOUT, "cni", "diagnose", "inject"})


def app(environ: Mapping[str, str], verbs: Collection[str] = VERBS) -> typer.Typer:
    """The Typer application for this environment, with some of the verbs: each takes Typer some milliseconds."""
    application = typer.Typer(
        cls=help_page.Group,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        no_args_is_help=True,
        context_settings=typer_options.HELP_FLAGS,
    )

    @application.callback(help=HELP)
    def program(
        *,
        _color: typer_parameters.Color = None,
        _no_pager: typer_parameters.NoPager = False,
        _version: typer_parameters.Version = False,
        _help_all: typer_parameters.HelpAll = False,
    ) -> None:
        """Options common to all verbs."""

    def add(name: str, verb: Callable[..., int], *, pods: bool = True) -> None:
        if name in verbs:
            command = typer_parameters.with_options(
                verb, environ, pods=pods, prints=name == "manifest", without=WITHOUT[name], shared=SHARED
            )
            application.command(name=name, help=verb.__doc__, cls=help_page.Command)(command)

    def add_with_texts(name: str, verb: Callable[..., int], offered: Sequence[Option], shorts: Collection[str]) -> None:
        if name in verbs:
            command = typer_parameters.with_texts(verb, offered, shorts, SHARED)
            application.command(name=name, help=verb.__doc__, cls=help_page.Command)(command)

    def add_acting(name: str, about: str, **changes: bool) -> None:
        verb = acting.verb(name, environ, **changes)
        verb.__doc__ = about
        add(name, verb, pods=False)

    add_acting("apply", APPLY)
    add_acting("clean", CLEAN, cleanup_only=True)
    add("check", check)
    add_with_texts("diagnose", diagnose, PLACES, ())
    add("doctor", doctor)
    add("draw", draw)
    add("explain", explain)
    add_with_texts("inject", inject, OFFERED, SHORTS)
    add("manifest", manifest)
    add("options", options)
    add("plan", plan)
    add("prove", prove)
    add("show", show)
    if "cni" in verbs:
        application.add_typer(cni.application, name="cni")
    return application


def main(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Run `istio-init` with these arguments; returns the exit code."""
    terminal.reset()
    verb = next((word for word in argv if not word.startswith("-")), "")
    own_shorts = SHORTS if verb == "inject" else ()
    words = spelled_out(argv)
    # A verb that comes first needs no other; what else comes first may be a mistake, or a request to list them.
    verbs = VERBS.intersection(words[:1]) or VERBS
    return typer_options.invoke(app(environ, verbs), PROGRAM, words, table=verb != "cni", shorts_taken=own_shorts)
