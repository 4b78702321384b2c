"""The pages of --help and --help-all: 80 columns, examples first, then the common options, or all of them.

Plain text without a library: it prints at once, and reads the same on a terminal, in a pipe and in a log.
"""

from __future__ import annotations

import shutil
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from typer.core import TyperCommand, TyperGroup

from istio_init.options.table import GROUPS, OPTIONS

if TYPE_CHECKING:
    from collections.abc import Iterator

WIDEST = 80
INDENT = "  "
TEXT_INDENT = " " * 10

# The options that --help shows; --help-all and the man pages have the rest.
COMMON = (
    "istio_service_cidr", "istio_service_exclude_cidr", "istio_inbound_ports", "istio_local_exclude_ports",
    "proxy_uid", "istio_inbound_interception_mode", "redirect_dns",
    "dual_stack", "network_namespace", "dry_run",
)  # fmt: skip
# A verb's own options of which --help leaves out the rarer ones, in the same way; by their names in the verb.
RARE = frozenset(
    {
        "interface", "gid", "mark", "connmark", "state", "reply", "pod_address", "runs_as", "host", "path", "method",
        "header", "speaks", "sni", "steps", "strict", "socket", "repair_except", "repair_rate", "repair_interval",
        "untaint", "daemonset", "cri_socket", "kubernetes", "proxy_container", "native",
    }
)  # fmt: skip
_OF_TABLE = {each.field for each in OPTIONS}
# Typer's own, which --help-all shows.
_COMPLETION = {"install_completion", "show_completion"}
# Options that every command has, listed last.
_LAST = {"color", "no_pager", "_color", "_no_pager", "_version", "_help_all", "help_all", "help"}

EVERYTHING = "-u 1337 -i '*' -b '*' -d 15020,15021,15090"
# Examples by the command's path below the program; each line fits the width.
EXAMPLES: dict[str, tuple[tuple[str, str], ...]] = {
    "istio-iptables": (
        ("Capture everything, as Istio's injection does", f"istio-iptables {EVERYTHING}"),
        ("See the rules first; nothing is changed", f"istio-iptables {EVERYTHING} --dry-run"),
        ("Capture only two destination ranges", "istio-iptables -u 1337 -i 10.0.0.0/8,192.168.0.0/16 -b '*'"),
        ("Remove everything again", "istio-iptables --cleanup-only"),
    ),
    "istio-clean-iptables": (
        ("Remove everything again", "istio-clean-iptables"),
        ("See first what would remain; nothing is changed", "istio-clean-iptables --dry-run"),
    ),
    "istio-init": (
        ("Check that this machine supports capture", "istio-init doctor -u 1337 -i '*' -b '*'"),
        ("See what a run would change", "istio-init plan --from-pod pod.yaml"),
        ("Follow one packet", "istio-init explain --from-pod pod.yaml --outbound --to :443"),
        ("Look at a container's rules", "istio-init show --container 3f2a -u 1337 -i '*' -b '*'"),
    ),
    "apply": (("Capture everything", f"istio-init apply {EVERYTHING}"),),
    "clean": (("Remove Istio's rules from a namespace", "istio-init clean --netns /var/run/netns/pod"),),
    "check": (("Is the plan in place? Exit 0 if so, 3 or 4 if not", f"istio-init check {EVERYTHING}"),),
    "doctor": (("Check a container's namespace", "istio-init doctor --container 3f2a --from-pod pod.yaml"),),
    "draw": (("A page to explore", "istio-init draw --from-pod pod.yaml --format html --file page.html"),),
    "explain": (
        ("The app calls a service", "istio-init explain --from-pod pod.yaml --outbound --to 10.1.2.3:443"),
        ("The same with a running pod's rules", "istio-init explain --netns PATH --outbound --to :443 -u 1337"),
    ),
    "inject": (("Add the init container to a workload", "istio-init inject -f deployment.yaml -o injected.yaml"),),
    "manifest": (("The init container for these options", "istio-init manifest -u 1337 -i '*' -b '*'"),),
    "diagnose": (
        ("Why do this pod's calls bypass the sidecar?", "istio-init diagnose default/reviews"),
        ("Follow one call of a container", "istio-init diagnose --container 3f2a9c1b --to 10.96.0.10:443"),
    ),
    "options": (("Which options were a container's rules made from?", "istio-init options --container 3f2a9c1b"),),
    "plan": (("What would a run change here?", f"istio-init plan {EVERYTHING}"),),
    "prove": (("Check all packets at once", "istio-init prove --from-pod pod.yaml"),),
    "show": (("Rules with counters, again and again", f"istio-init show {EVERYTHING} --watch 2"),),
    "cni": (("Install the plugin on this node and keep it there", "istio-init cni install --watch"),),
    "cni install": (("Install the plugin on this node", "istio-init cni install"),),
    "cni uninstall": (("Take the plugin out of this node's networks", "istio-init cni uninstall"),),
    "cni status": (("Is the plugin in place?", "istio-init cni status --output json"),),
    "cni agent": (("Keep the plugin installed, and know the node's pods", "istio-init cni agent --node NAME"),),
    "cni repair": (("Capture the pods that the plugin missed", "istio-init cni repair --fix"),),
}


class Command(TyperCommand):
    """A command with this help."""

    def format_help(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401 (Click's)
        """As Click calls it."""
        formatter.write(page(self, ctx))


class Group(TyperGroup):
    """A group of commands with this help."""

    def format_help(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401 (Click's)
        """As Click calls it."""
        formatter.write(page(self, ctx))


def page(command: Any, ctx: Any, *, everything: bool = False) -> str:  # noqa: ANN401 (Click's)
    """The help of a command or a group."""
    return "\n".join(_lines(command, ctx, everything=everything)) + "\n"


def _lines(command: Any, ctx: Any, *, everything: bool) -> Iterator[str]:  # noqa: ANN401 (Click's)
    group = isinstance(command, TyperGroup)
    yield f"Usage: {ctx.command_path} {'COMMAND ' if group else ''}[OPTIONS]"
    for paragraph in (command.help or "").split("\n\n"):
        yield ""
        yield from _wrapped(" ".join(paragraph.split()))
    yield from _examples(ctx.command_path)
    if group:
        yield from _commands(command, ctx)
    parameters = [each for each in command.get_params(ctx) if each.param_type_name == "option"]
    # The verbs for a node have options of the same names for their own purposes.
    table = frozenset() if "cni" in ctx.command_path.split() else _OF_TABLE
    own = [each for each in parameters if each.name not in table]
    hidden = _COMPLETION | _LAST | (frozenset() if everything else RARE)
    verbs = [each for each in own if each.name not in hidden]
    last = [each for each in own if each.name in _LAST or (everything and each.name in _COMPLETION)]
    of_table = {each.name: each for each in parameters if each.name in table}
    common = [] if everything else [of_table[name] for name in COMMON if name in of_table]
    yield from _section("Options", verbs, common, last)
    if everything:
        for title in GROUPS:
            named = [of_table[each.field] for each in OPTIONS if each.group == title and each.field in of_table]
            yield from _section(title, named)


def _examples(path: str) -> Iterator[str]:
    program, _, below = path.partition(" ")
    examples = EXAMPLES.get(below or program.rpartition("/")[2], ())
    if examples:
        yield from ("", "Examples:")
    for what, line in examples:
        yield f"{INDENT}# {what}"
        yield f"{INDENT}{line}"


def _commands(group: Any, ctx: Any) -> Iterator[str]:  # noqa: ANN401 (Click's)
    yield from ("", "Commands:")
    names = group.list_commands(ctx)
    width = max(map(len, names), default=0)
    for name in names:
        first = " ".join((group.get_command(ctx, name).help or "").split("\n\n")[0].split())
        head, *more = wrap(first, _width() - width - 4) or [""]
        yield f"{INDENT}{name:{width}}  {head}"
        yield from (f"{INDENT}{'':{width}}  {line}" for line in more)


def _section(title: str, *lists: list[Any]) -> Iterator[str]:
    parameters = [each for listed in lists for each in listed]
    if not parameters:
        return
    yield from ("", f"{title}:")
    for each in parameters:
        yield f"{INDENT}{_names(each)}"
        yield from (f"{TEXT_INDENT}{line}" for line in wrap(each.help or "", _width() - len(TEXT_INDENT)))


def _names(parameter: Any) -> str:  # noqa: ANN401 (Click's)
    """The flag's names, short ones first, and what it takes."""
    names = sorted(parameter.opts, key=lambda name: (name.startswith("--"), parameter.opts.index(name)))
    takes = "" if parameter.is_flag else f" {parameter.metavar or 'VALUE'}"
    return ", ".join(names) + takes


def _wrapped(text: str) -> list[str]:
    return wrap(text, _width())


def _width() -> int:
    return min(shutil.get_terminal_size().columns, WIDEST)
