"""The manual pages, in mdoc(7): `python -m scripts.generate.man_pages docs/man` writes them anew.

Options, verbs, variables and annotations are those of the tables that the programs are made from; only what a page
tells around them is here. The wheel installs them below share/man.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from typer.main import get_command

from istio_init.cli.app import app
from istio_init.cli.typer_parameters import default_text
from istio_init.cni.plugin.protocol import VERSIONS
from istio_init.cni.plugin.settings import CAPABILITY, LOG_FILE, NOT_CONFIGURABLE
from istio_init.options.annotations import ANNOTATIONS
from istio_init.options.table import GROUPS, OPTIONS, Option
from scripts.generate import mdoc, verb_pages

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

# When what is in this file was last written.
DATE = "November 25, 2026"

PROGRAMS = ("istio-iptables.1", "istio-clean-iptables.1", "istio-init.1", "istio-init-cni.8")

ENVIRONMENT = (
    "Where a flag is not given, the variable of its name in capitals with underscores counts (--istio-inbound-ports: "
    "ISTIO_INBOUND_PORTS); --envoy-port has none. An empty one counts as unset. Further ones, which come before it:"
)
EXITS = {
    0: "Done, or nothing to do.",
    1: "An error: one line on standard error says what is wrong and what to do. The namespace is as it was.",
    126: "The validation failed.",
    255: "The command line or the environment could not be understood.",
}
# Istio's, for a pod with a sidecar.
ARTICLE = "istio-iptables -p 15001 -z 15006 -u 1337 -m REDIRECT -i '*' -x \"\" -b '*' -d 15090,15020"
# Keys of the plugin's own part of a network configuration, beside the options.
KEYS = {
    "istio": "Options that every sandbox of the network gets, by their flags.",
    "defaults": "Options where a pod's annotations say nothing.",
    "exclude_namespaces": "Namespaces whose pods are passed through.",
    "kubernetes.kubeconfig": "Asks the API for a pod's annotations where the runtime hands on none.",
    "kubernetes.attempts": "How often it is asked at most; 10.",
    "kubernetes.pause_ms": "Milliseconds between two tries; 1000.",
    "kubernetes.timeout_ms": "Milliseconds that one may take; 5000.",
    "plugin_log_level": "none, fatal, error, warn, info or debug.",
    "log_file": f"Where it logs; {LOG_FILE}.",
    "log_bytes": "How large that file gets before it is begun anew.",
    "run_dir": "Where it keeps what each sandbox got.",
    "agent": "Whether the node agent is asked for the pod: required, preferred or none.",
    "agent_socket": "Where the node agent listens.",
}


def page(name: str) -> str:
    """The text of a page, by its file's name."""
    programs = dict(zip(PROGRAMS, (_iptables, _clean, _init, _cni), strict=True))
    verbs = {verb_pages.file_name(verb): (verb, command) for verb, command in _verbs()}
    lines = programs[name]() if name in programs else verb_pages.lines(*verbs[name])
    program, _, section = name.rpartition(".")
    head = [f".Dd {DATE}", f".Dt {program.upper()} {section}", ".Os"]
    return "\n".join([*head, *lines]) + "\n"


def _iptables() -> Iterator[str]:
    yield from mdoc.name("istio-iptables", "program a pod's network namespace for a sidecar proxy")
    yield from (".Sh SYNOPSIS", ".Nm", ".Op Ar option ...")
    yield from mdoc.section(
        "DESCRIPTION",
        "Programs the network namespace that it runs in so that all TCP traffic passes through Envoy, the sidecar "
        "proxy: what comes in goes to its port 15006, what the pod sends to its port 15001, and what the proxy "
        "itself sends is left alone. A drop-in for Istio's program of the same name: the same flags, variables, "
        "exit codes and rules.",
        "A run is a transaction. Where anything fails, what stood before is put back. Where everything is in place, "
        "nothing is written. Other programs' rules are left untouched. It needs the capabilities CAP_NET_ADMIN and "
        "CAP_NET_RAW.",
        "A switch is given as --flag, --flag=true, --flag=false or --no-flag. Lists are separated by commas. "
        "Ports may be ranges, 4000-4003 or 4000:4003.",
    )
    for group in GROUPS:
        yield f".Ss {group}"
        yield from mdoc.listed(_option(each) for each in OPTIONS if each.group == group)
    yield from _environment(OPTIONS)
    yield ".Pp"
    yield from mdoc.sentences("And two that no option is named after:")
    yield from mdoc.listed(
        [
            (".It Ev ENVOY_USER", "The user whose id is the proxy's where --proxy-uid is empty; istio-proxy."),
            (".It Ev XTABLES_LOCKFILE", "The lock, in the place of /run/xtables.lock."),
        ]
    )
    yield from mdoc.section("FILES")
    yield from mdoc.listed(
        (".It Pa " + path, text)
        for path, text in (
            ("/run/xtables.lock", "The lock that programs which write iptables share."),
            ("/etc/resolv.conf", "The servers of --redirect-dns where --dns-servers names none."),
        )
    )
    yield from mdoc.exits(EXITS)
    yield from mdoc.examples(
        {
            "What Istio's injection has an init container do, in the pod's namespace:": ARTICLE,
            "The same as a preview, anywhere and without root:": f"{ARTICLE} --dry-run",
            "From outside:": "istio-iptables -i '*' -b '*' --network-namespace /var/run/netns/x",
            "Other flags than before:": "istio-iptables -i '*' -b 80,443 --reconcile",
        }
    )
    yield from mdoc.see_also("istio-clean-iptables 1", "istio-init 1", "istio-init-cni 8", "iptables 8", "nft 8")


def _clean() -> Iterator[str]:
    yield from mdoc.name("istio-clean-iptables", "take a sidecar proxy's rules out of a network namespace")
    yield from (".Sh SYNOPSIS", ".Nm", ".Op Ar option ...")
    yield from mdoc.section(
        "DESCRIPTION",
        "Takes everything away that istio-iptables(1) brought into the network namespace that it runs in: rules, "
        "chains and routing, whatever flags they were made with. Other programs' rules are left untouched. The same as "
        "istio-iptables "
        "--cleanup-only.",
        "It takes the options of istio-iptables(1). Those that say which rules to write are not needed; they help "
        "to know rules in the built-in chains that another program wrote, and the routing that a run which was cut "
        "short left.",
    )
    chosen = (
        *("network_namespace", "wait", "cni_mode", "force_iptables_binary", "native_nftables", "log_output_level"),
        *("istio_inbound_tproxy_mark", "istio_inbound_tproxy_route_table"),
    )
    some = [each for each in OPTIONS if each.field in chosen]
    yield from mdoc.listed(map(_option, some))
    yield from mdoc.section("ENVIRONMENT", "As of istio-iptables(1).")
    yield from mdoc.exits({code: text for code, text in EXITS.items() if code != 126})
    yield from mdoc.examples({"From outside:": "istio-clean-iptables --network-namespace /var/run/netns/x"})
    yield from mdoc.see_also("istio-init 1", "istio-iptables 1")


def _init() -> Iterator[str]:
    yield from mdoc.name("istio-init", "ask what a sidecar proxy's rules do")
    yield from (".Sh SYNOPSIS", ".Nm", ".Ar verb", ".Op Ar option ...")
    yield from mdoc.section(
        "DESCRIPTION",
        "Asks questions of the rules that istio-iptables(1) writes. Each verb takes the options of "
        "istio-iptables(1) and means by them the plan that is wanted, beside options of its own. But for apply, "
        "clean and cni, the verbs change nothing.",
    )
    yield from mdoc.listed([
        (".It Fl -from-pod Ar FILE", "But for apply, clean and cni: take the options from this pod's manifest."),
        (".It Fl -version", "Print the version, the commit where it is known, and the libraries; do nothing."),
        (".It Fl -color Ar auto|always|never", "Colours. auto: on a terminal, unless NO_COLOR is set."),
        (".It Fl -no-pager", "Print long answers at once, not by $PAGER or less."),
    ])  # fmt: skip
    for name, command in _verbs():
        yield f".Ss {mdoc.flag_text(name)}"
        yield from mdoc.sentences(" ".join(command.help.split()))
        yield from mdoc.listed(mdoc.parameter(each) for each in command.params if _own(name, each))
        if name in verb_pages.VERB_EXITS:
            yield from (".Pp", "Its exit status:")
            yield from mdoc.listed((f".It {code}", text) for code, text in verb_pages.VERB_EXITS[name].items())
    yield from mdoc.exits(EXITS)
    yield from mdoc.examples(
        {
            "Where a connection of the app's goes:": "istio-init explain --outbound --to 10.1.2.3:443 -i '*' -b '*'",
            "The same of a pod that runs:": "istio-init explain --outbound --to 10.1.2.3:443 --live --pid 4711",
            "The same of a manifest:": "istio-init explain --outbound --to 10.1.2.3:443 --from-pod pod.yaml",
            "A page to ask:": "istio-init draw -i '*' -b '*' --format html --file page.html",
            "A probe:": "istio-init check -i '*' -b '*' --netns /var/run/netns/x",
        }
    )
    verbs = (f"{verb_pages.file_name(verb)[:-2]} 1" for verb, _ in _verbs())
    yield from mdoc.see_also("istio-clean-iptables 1", "istio-iptables 1", "istio-init-cni 8", *verbs)


def _cni() -> Iterator[str]:
    yield from mdoc.name("istio-init-cni", "CNI plugin that programs pods for a sidecar proxy")
    yield from (".Sh SYNOPSIS", ".Nm")
    yield from mdoc.section(
        "DESCRIPTION",
        "A chained CNI plugin. A container runtime calls it for each sandbox, with the network's configuration on "
        "standard input; it applies in the sandbox what istio-iptables(1) would, so that the pod needs no init "
        f"container with rights. It speaks versions {', '.join(VERSIONS)} of the specification.",
        "istio-init cni install enters it in a node's network; see istio-init(1).",
        "A pod is captured if it has a sidecar, which its annotations tell. The runtime hands them on where the "
        f"network has the capability {CAPABILITY}.",
    )
    yield ".Ss Configuration"
    yield from mdoc.listed((f".It Cm {key}", text) for key, text in KEYS.items())
    flags = ", ".join(each.flag for each in OPTIONS if each.field not in NOT_CONFIGURABLE)
    yield ".Pp"
    yield from mdoc.sentences(f"istio and defaults take options of istio-iptables(1): {flags}.")
    yield ".Ss Annotations"
    yield from mdoc.listed(
        (f".It Li {mdoc.quoted(each.title)}", f"{each.help}{_set_by(each.flag)}") for each in ANNOTATIONS
    )
    yield ".Sh ENVIRONMENT"
    yield from mdoc.sentences(
        "CNI_COMMAND, CNI_CONTAINERID, CNI_NETNS, CNI_IFNAME and CNI_ARGS, as the specification has them. "
        "Variables of istio-iptables(1) don't count here."
    )
    yield ".Sh FILES"
    yield from mdoc.listed([(f".It Pa {LOG_FILE}", "What it did, and for which pod.")])
    yield from mdoc.exits({0: "Done.", 1: "An error, told as JSON on standard output."})
    yield from mdoc.see_also("istio-init 1", "istio-iptables 1")


def _set_by(flag: str) -> str:
    return f" Sets {flag}." if flag else ""


def _option(each: Option) -> tuple[str, str]:
    names = [f"Fl {each.short}"] if each.short else []
    names.append(f"Fl {mdoc.flag_text('-' + each.flag)}")
    value = f" Ar {each.metavar}" if each.metavar and not each.switch else ""
    default = default_text(each)
    return f".It {' , '.join(names)}{value}", each.help + (f" Default: {default}." if default else "")


def _environment(options: Iterable[Option]) -> Iterator[str]:
    yield from mdoc.section("ENVIRONMENT", ENVIRONMENT)
    further = [(name, each) for each in options for name in each.variables if name != each.field.upper()]
    yield from mdoc.listed((f".It Ev {name}", f"Of --{each.flag}.") for name, each in further)


def _verbs() -> Iterator[tuple[str, Any]]:
    """The verbs by name, those of cni each by two words, as Typer has them."""
    for name, command in get_command(app({})).commands.items():  # type: ignore[attr-defined] # a group has commands
        for inner, one in getattr(command, "commands", {"": command}).items():
            yield f"{name} {inner}".strip(), one


def _own(verb: str, parameter: Any) -> bool:  # noqa: ANN401 (Typer's)
    """Whether a parameter is the verb's own, and not one that all verbs take."""
    table = set() if verb.startswith("cni ") else {each.field for each in OPTIONS}
    common = table | {"help", "from_pod"} | verb_pages.SHARED
    return parameter.name not in common


PAGES = (*PROGRAMS, *(verb_pages.file_name(verb) for verb, _ in _verbs()))


def path(name: str) -> str:
    """Where a page is below the directory of all."""
    return os.path.join(f"man{name[-1]}", name)


def write(directory: str) -> None:
    """Write all pages below a directory."""
    for name in PAGES:
        os.makedirs(os.path.dirname(os.path.join(directory, path(name))), exist_ok=True)
        with open(os.path.join(directory, path(name)), "w", encoding="utf-8") as file:
            file.write(page(name))


if __name__ == "__main__":
    write(sys.argv[1])
