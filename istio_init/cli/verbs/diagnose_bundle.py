"""What an expert asks for, in one archive: facts, rules and the proxy's configuration, without secrets.

Left out: environments and command lines of processes, tokens, certificates, and what Envoy keeps as secrets.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
from typing import TYPE_CHECKING, Any

from istio_init import __version__
from istio_init.cli.verbs import envoy_flags
from istio_init.errors import InitError
from istio_init.errors_rare import OptionError
from istio_init.formats.addresses import address_text, endpoint_text
from istio_init.formats.iptables_save import dump
from istio_init.kernel.host import envoy_admin
from istio_init.kernel.netlink.ip_sets import saved_sets
from istio_init.model.routing import command
from istio_init.runner import access

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from istio_init.inspect.diagnose.case import Situation, SocketCaptureState

# Fields of Envoy's configuration that hold, or may hold, a secret; and whole parts that do.
SECRET_FIELDS = (
    "inline_bytes",
    "inline_string",
    "private_key",
    "password",
    "token",
    "secret",
    "trusted_ca",
    "metadata",
)
SECRET_PARTS = ("SecretsConfigDump", "BootstrapConfigDump")
REMOVED = "(left out)"
MODE = 0o600


def write(path: str, about: Situation, values: Mapping[str, Any]) -> None:
    """Write the archive, readable for its owner alone. OptionError where the file exists or can't be written."""
    data = io.BytesIO()
    with gzip.GzipFile(fileobj=data, mode="wb", mtime=0) as packed, tarfile.open(fileobj=packed, mode="w") as archive:
        for name, text in _files(about, values):
            content = text.encode()
            entry = tarfile.TarInfo(f"diagnose/{name}")
            entry.size, entry.mode = len(content), MODE
            archive.addfile(entry, io.BytesIO(content))
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, MODE)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data.getvalue())
    except (OSError, ValueError) as error:
        raise OptionError("--bundle", path, getattr(error, "strerror", None) or str(error)) from None


def _ip_sets(about: Situation) -> str:
    """The IP sets of a live namespace, as `ipset save` prints them: rules name them."""
    if not about.live:
        return ""
    with access.namespace(about.options):
        return saved_sets()


def _files(about: Situation, values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "diagnosis.json", json.dumps({"version": __version__, "kernel": os.uname().release, **values}, indent=1)
    yield "options.txt", f"{about.source}\n"
    for ruleset in about.chosen:
        yield f"rules.{ruleset.family}.txt", dump(ruleset)
    if sets := _ip_sets(about):
        yield "ipsets.txt", sets
    yield (
        "routing.txt",
        "".join(
            f"{line}\n"
            for line in (
                *map(command, about.facts.policy_rules),
                *(rule.command for rule in about.facts.masked_rules),
                *map(command, about.facts.routes),
                *(
                    f"{address_text(each.network.address)}/{each.network.prefix} dev {each.device}"
                    for each in about.facts.addresses
                ),
            )
        ),
    )
    yield "sysctls.txt", "".join(f"{name} = {value}\n" for name, value in sorted(about.sysctls.items()))
    yield "processes.txt", "".join(f"{each.text}: uid {each.uid}, gid {each.gid}\n" for each in about.residents)
    yield "sockets.txt", "".join(_sockets(about))
    if about.capture:
        yield "capture.txt", "".join(f"{name} = {value}\n" for name, value in _capture(about.capture))
    if envoy_admin.DEFAULT_PORT in (about.listening or ()):
        yield "envoy.json", _proxy(about)


def _capture(state: SocketCaptureState) -> Iterator[tuple[str, object]]:
    yield "in the map of captured pods", state.captured
    yield "sk_lookup attached", state.inbound_attached
    yield "programs not attached", ", ".join(state.missing) or "none"
    yield from state.counts.items()


def _sockets(about: Situation) -> Iterator[str]:
    yield f"tcp listening: {', '.join(map(str, sorted(about.listening or ())))}\n"
    yield f"udp: {', '.join(map(str, sorted(about.bound or ())))}\n"
    for each in about.connections:
        state = {None: "not tracked", True: "redirected", False: "not redirected"}[each.redirected]
        yield f"{endpoint_text(*each.local)} -> {endpoint_text(*each.remote)} uid {each.uid} {state}\n"


def _proxy(about: Situation) -> str:
    """The proxy's configuration without secrets, or why there is none."""
    try:
        with access.namespace(about.options):
            text = envoy_admin.get(envoy_flags.ADMIN, envoy_flags.DUMP_PATH).decode(errors="replace")
        return json.dumps(redacted(json.loads(text)), indent=1)
    except (InitError, ValueError) as error:
        return json.dumps({"error": str(error)})


def redacted(value: Any) -> Any:  # noqa: ANN401 (JSON)
    """JSON without the fields and parts that may hold secrets."""
    if isinstance(value, list):
        return [redacted(each) for each in value]
    if not isinstance(value, dict):
        return value
    if str(value.get("@type", "")).endswith(SECRET_PARTS):
        return {"@type": value["@type"], "content": REMOVED}
    return {
        key: REMOVED if any(word in key.lower() for word in SECRET_FIELDS) else redacted(each)
        for key, each in value.items()
    }
