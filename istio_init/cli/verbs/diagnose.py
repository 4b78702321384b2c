"""`istio-init diagnose`: what is wrong with a pod's capture, which packet shows it, and what to do."""

from __future__ import annotations

import sys
from collections.abc import Mapping  # noqa: TC003 (Typer reads the verb's annotations)
from typing import TYPE_CHECKING, Annotated

import typer

from istio_init.cli.verbs import diagnose_bundle
from istio_init.cli.verbs.diagnose_call import CallFlags, UnknownName, answers_json, sidecar_causes
from istio_init.cli.verbs.diagnose_call import call as one_call
from istio_init.cli.verbs.diagnose_call import remarks as call_remarks
from istio_init.cli.verbs.diagnose_pod import situation
from istio_init.cli.verbs.diagnose_question import Question
from istio_init.cli.verbs.output import choice, print_json, show
from istio_init.cli.verbs.subject import Container, FromSave, Pid  # noqa: TC001 (Typer reads the verb's annotations)
from istio_init.errors import InitError, printable
from istio_init.errors_rare import OptionError, UsageError
from istio_init.inspect.diagnose.calls import about_call
from istio_init.inspect.diagnose.causes import causes
from istio_init.inspect.diagnose.report import document, lines
from istio_init.options.table import OPTIONS

if TYPE_CHECKING:
    from istio_init.cli.verbs.diagnose_call import Call
    from istio_init.inspect.diagnose.case import Cause, Situation

HEALTHY, FAULT, UNKNOWN = 0, 3, 4
# Of the table's options, the one that names a place.
OFFERED = tuple(each for each in OPTIONS if each.field == "network_namespace")


def diagnose(  # noqa: PLR0913 (a command line's options)
    texts: Mapping[str, str],
    pod: Annotated[str, typer.Argument(metavar="[NAMESPACE/]POD", help="A pod of this node, by the runtime.")] = "",
    *,
    container: Container = None,
    pid: Pid = None,
    from_pod: Annotated[
        str, typer.Option("--from-pod", metavar="FILE", help="What was wanted: a pod's manifest, - for standard input.")
    ] = "",
    from_save: FromSave = "",
    cri_socket: Annotated[str, typer.Option(metavar="PATH", help="The runtime's socket. Unset: a usual one.")] = "",
    to: Annotated[
        str, typer.Option("--to", metavar="HOST:PORT", help="Ask about one call to this address or name.")
    ] = "",
    source: Annotated[str, typer.Option("--from", metavar="ADDRESS", help="Ask about a call from this client.")] = "",
    url: Annotated[
        str, typer.Option(metavar="URL", help="Ask about one request, through the sidecar's routes too.")
    ] = "",
    envoy: Annotated[
        str,
        typer.Option(
            "--envoy",
            metavar="FILE|-|http://HOST:PORT|unix:PATH",
            help="The sidecar's configuration. Unset: its admin port in the pod, where a request or a name needs it.",
        ),
    ] = "",
    bundle: Annotated[
        str, typer.Option(metavar="FILE", help="Write all facts, without secrets, to this .tar.gz for an expert.")
    ] = "",
    output: Annotated[str, typer.Option(metavar="text|json", help="For people or for programs.")] = "text",
) -> int:
    """Find out why a pod's calls bypass the sidecar or fail; exit 0 healthy, 3 a fault, 4 if that can't be known."""
    form = choice("--output", output, ("text", "json"))
    netns = texts.get("network_namespace", "")
    if texts.get("network_namespace") == "":
        raise OptionError("--network-namespace", "", "empty: name one, or leave the flag out")
    flags = CallFlags(to, source, url, envoy)
    question = Question(pod, container, pid, netns, from_pod, from_save, cri_socket)
    try:
        about = situation(question)
        faults, call, remarks = _answer(about, flags)
    except (OptionError, UsageError):
        raise
    except InitError as error:
        return _unknown(str(error), form)
    code = FAULT if faults else HEALTHY
    path = call.path if call else None
    values = {**document(about, faults, path, code), "sidecar": answers_json(about, call), "remarks": list(remarks)}
    if bundle:
        diagnose_bundle.write(bundle, about, values)
    if form == "json":
        print_json("diagnose", values)
    else:
        show(lines(about, faults, path, _blind(about), remarks))
    return code


def _answer(about: Situation, flags: CallFlags) -> tuple[tuple[Cause, ...], Call | None, tuple[str, ...]]:
    """The causes, the call that was asked about, and remarks. InitError where nothing can be known of it."""
    faults = causes(about)
    try:
        call = one_call(about, flags)
    except UnknownName as error:
        if not faults:
            raise
        # What is wrong with the pod may be why the name has no address.
        return faults, None, (str(error),)
    if call is None:
        return faults, None, ()
    explaining = about_call(about, faults, call.path) or sidecar_causes(about, call)
    return explaining, call, tuple(call_remarks(about, call))


def _blind(about: Situation) -> str:
    """What is alone known, where more would be of a running pod."""
    return "" if about.listening is not None else "the dump" if about.live else "the manifest"


def _unknown(why: str, form: str) -> int:
    if form == "json":
        values: dict[str, object] = {
            "code": UNKNOWN,
            "healthy": None,
            "options": None,
            "backends": [],
            "causes": [],
            "call": None,
            "sidecar": None,
            "remarks": [],
        }
        print_json("diagnose", {**values, "unknown": why})
    else:
        sys.stdout.write(printable(f"CANNOT KNOW: {why}") + "\n")
    return UNKNOWN
