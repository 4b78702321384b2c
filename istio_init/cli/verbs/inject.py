"""`istio-init inject`: adds the init container to the workloads of manifests, or prints an admission policy for it."""

from __future__ import annotations

import difflib
import json
import os
import sys
from collections.abc import Mapping  # noqa: TC003 (Typer reads the verb's annotations)
from typing import TYPE_CHECKING, Annotated

import typer

from istio_init.cli.input_file import decode, read_bytes
from istio_init.cli.verbs.output import choice, print_json
from istio_init.errors import shown
from istio_init.errors_rare import OptionError, UsageError
from istio_init.formats import yaml_json
from istio_init.inject import injector, policy
from istio_init.inject.containers import InitSpec
from istio_init.kernel.host import file_locks, files
from istio_init.options.cni_pod import PROXY_CONTAINER
from istio_init.options.table import OPTIONS
from istio_init.planning.socket_capture import FROM_THE_NODE
from istio_init.record import Record

if TYPE_CHECKING:
    from collections.abc import Iterator

FILE = "--filename (-f)"
SUFFIXES = (".yaml", ".yml", ".json")
OUTPUT = "--output-file (-o)"
STANDARD_INPUT = "standard input"
# Options without a meaning in an init container.
NOT_OFFERED = {"dry_run", "network_namespace", "cni_mode", "cleanup_only", "skip_rule_apply", "ip_family"}
OFFERED = tuple(each for each in OPTIONS if each.field not in NOT_OFFERED)
# Short flags that mean something else in other verbs: -o is a file here, as with kubectl and istioctl.
SHORTS = frozenset({"f", "o"})


class _Source(Record):
    """A file: its name in errors, its path (- for standard input), and its text."""

    name: str
    path: str
    text: str


def inject(  # noqa: PLR0913 (its flags)
    texts: Mapping[str, str],
    *,
    filename: Annotated[
        str, typer.Option("--filename", "-f", metavar="FILE", help="A manifest, a directory of them, or -.")
    ] = "",
    output: Annotated[
        str, typer.Option("--output-file", "-o", metavar="FILE", help="Write there instead of to standard output.")
    ] = "",
    in_place: Annotated[bool, typer.Option("--in-place", help="Replace each file, atomically.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; print a diff and exit 1 if something would change.")
    ] = False,
    remove: Annotated[bool, typer.Option("--remove", help="Remove the init container.")] = False,
    validation: Annotated[
        bool, typer.Option("--validation", help="Add istio-validation instead, for pods that the CNI plugin captures.")
    ] = False,
    native: Annotated[
        bool,
        typer.Option(
            "--native/--plain",
            help="The kind of sidecar to expect in a pod that has none yet; a native sidecar starts first.",
        ),
    ] = True,
    proxy_container: Annotated[
        str, typer.Option(metavar="NAME", help="The proxy's container; its runAsUser becomes -u.")
    ] = PROXY_CONTAINER,
    image: Annotated[str, typer.Option("--image", metavar="IMAGE", help="The init container's image.")] = "",
    policy_kind: Annotated[
        str,
        typer.Option(
            "--policy", metavar="capture|image", help="Print a MutatingAdmissionPolicy that does it at admission."
        ),
    ] = "",
    kubernetes: Annotated[
        str, typer.Option(metavar="VERSION", help="With --policy: the cluster's version, such as 1.34.")
    ] = policy.CURRENT,
    form: Annotated[str, typer.Option("--output", metavar="text|json", help="json: a report of each file.")] = "text",
) -> int:
    """Add the init container to the workloads of a manifest, and leave every other byte as it is.

    Options set the mesh's defaults; a workload's annotations take precedence.
    """
    if output and output != "-" and not output.strip("0123456789,-: "):
        raise OptionError(OUTPUT, output, "a file here, not ports: those are --istio-local-outbound-ports-exclude")
    if texts.get("capture_backend") == "ebpf":
        raise UsageError(FROM_THE_NODE)
    as_json = choice("--output", form, ("text", "json")) == "json"
    request = InitSpec(texts, image, proxy_container, native, validation)
    if policy_kind:
        kind = choice("--policy", policy_kind, policy.KINDS)
        if filename or output or in_place or check or remove:
            raise UsageError("--policy: prints a policy, and takes no files")
        printed = policy.printed(kind, request, kubernetes)
        sys.stdout.write(_kubernetes_list(printed) if as_json else printed)
        return 0
    sources = _read(filename, output, in_place=in_place, check=check)
    results = [(source, _result(source, request, remove=remove, quiet=as_json)) for source in sources]
    changed = [(source, result.text) for source, result in results if result.text != source.text]
    to_file = bool(output) and output != "-"
    if in_place:
        for source, text in changed:
            _write(source.path, text)
    elif to_file:
        _write(output, results[0][1].text)
    if as_json:
        with_text = not (in_place or check or to_file)
        reports = [_report(source, result, with_text=with_text) for source, result in results]
        print_json("inject", {"changed": bool(changed), "files": reports})
    elif check:
        sys.stdout.write("".join(_diff(source, text) for source, text in changed))
    elif not (in_place or to_file):
        sys.stdout.flush()
        sys.stdout.buffer.write("".join(_joined(result.text for _, result in results)).encode())
    return 1 if check and changed else 0


def _report(source: _Source, result: injector.Result, *, with_text: bool) -> dict[str, object]:
    """What was done to one file; `with_text`: with the manifest, which is not written anywhere else."""
    return {
        "file": source.name,
        "changed": result.text != source.text,
        "workloads": result.workloads,
        "notes": [{"workload": title, "note": note} for title, note in result.notes],
        "text": result.text if with_text else None,
    }


def _kubernetes_list(manifest: str) -> str:
    """Kubernetes objects in YAML as a List in JSON, which kubectl takes as well."""
    items = yaml_json.load(manifest)
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": items}, indent=2) + "\n"


def _read(filename: str, output: str, *, in_place: bool, check: bool) -> list[_Source]:
    """The files that the flags name; UsageError if the flags contradict each other."""
    if not filename:
        raise UsageError(f"{FILE}: missing: name a manifest, a directory, or - for standard input")
    if sum((in_place, check, bool(output))) > 1:
        raise UsageError(f"--in-place, --check, {OUTPUT}: use one of them")
    if filename == "-":
        if in_place:
            raise UsageError("--in-place: standard input can't be replaced; name a file")
        return [_source(filename)]
    if not os.path.isdir(filename):
        return [_source(filename)]
    if output:
        raise UsageError(f"{OUTPUT}: {shown(filename)} is a directory: use --in-place")
    sources = [_source(path) for path in _manifests(filename)]
    if not sources:
        raise OptionError(FILE, filename, f"no file in this directory ends in {', '.join(SUFFIXES)}")
    return sources


def _manifests(directory: str) -> Iterator[str]:
    """The manifests of a directory and its subdirectories, sorted; hidden files are skipped."""
    for parent, directories, names in os.walk(directory):
        directories[:] = sorted(name for name in directories if not name.startswith("."))
        for name in sorted(names):
            if name.endswith(SUFFIXES) and not name.startswith("."):
                yield os.path.join(parent, name)


def _source(path: str) -> _Source:
    name = STANDARD_INPUT if path == "-" else path
    return _Source(name, path, decode(FILE, path, read_bytes(FILE, path)))


def _result(source: _Source, request: InitSpec, *, remove: bool, quiet: bool) -> injector.Result:
    """A file's text after the change; notes about its workloads go to standard error, unless `quiet`."""
    name = source.name if source.name.isprintable() else shown(source.name)
    try:
        result = injector.remove(source.text) if remove else injector.inject(source.text, request)
    except OptionError:
        raise
    except (UsageError, ValueError) as error:
        raise UsageError(f"{name}: {error}") from None
    if quiet:
        return result
    for title, note in result.notes:
        sys.stderr.write(f"istio-init: {name}: {title}: {note}\n")
    if not result.workloads:
        sys.stderr.write(f"istio-init: {name}: no workload\n")
    return result


def _joined(texts: Iterator[str]) -> Iterator[str]:
    """Several files as one YAML stream, separated by `---` unless the next file begins with it."""
    before = ""
    for text in texts:
        if before:
            yield "" if before.endswith("\n") else "\n"
            yield "" if text.startswith("---") else "---\n"
        yield text
        before = text


def _diff(source: _Source, result: str) -> str:
    lines = difflib.unified_diff(
        source.text.splitlines(), result.splitlines(), source.name, f"{source.name} (injected)", lineterm=""
    )
    return "".join(
        f"{''.join(c if c.isprintable() or c == chr(9) else repr(c)[1:-1] for c in line)}\n" for line in lines
    )


def _write(path: str, text: str) -> None:
    """Replace a file's content atomically; of a symbolic link, the target's."""
    target = os.path.realpath(path)
    with file_locks.DirectoryLock(os.path.dirname(target)):
        like = files.read(target, sys.maxsize)
        files.replace(target, text.encode(), like, 0o644)
