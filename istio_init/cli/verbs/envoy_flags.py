"""Flags for the proxy: where its configuration comes from, and the client and request to follow through it."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer

from istio_init.cli import input_file
from istio_init.cli.verbs.output import choice, working
from istio_init.cli.verbs.subject import Where, is_live, placed
from istio_init.envoy.addresses import packed
from istio_init.envoy.client import CLIENTS, HttpCall
from istio_init.envoy.dump import load, with_health
from istio_init.envoy.fit import prove
from istio_init.envoy.names import address_of
from istio_init.envoy.node import DumpError
from istio_init.envoy.path import Pod, answers
from istio_init.envoy.walk import Configuration
from istio_init.errors import KernelError, shown
from istio_init.errors_rare import OptionError, UsageError
from istio_init.formats.addresses import endpoint_text
from istio_init.kernel.host import envoy_admin, tcp_connections
from istio_init.options.arguments import arguments
from istio_init.record import Record
from istio_init.runner import access

if TYPE_CHECKING:
    from istio_init.cli.verbs.subject import Subject
    from istio_init.envoy.client import Client
    from istio_init.envoy.fit import Fit
    from istio_init.envoy.path import Answer
    from istio_init.model.packet import Packet
    from istio_init.options.table import Options

FLAG = "--envoy"
# Where Istio has Envoy's admin interface in a pod.
ADMIN = f"{envoy_admin.HTTP}127.0.0.1:{envoy_admin.DEFAULT_PORT}"
DUMP_PATH, HEALTH_PATH = "/config_dump?include_eds", "/clusters?format=json"

# The flags, as Typer wants them.
Source = Annotated[
    str,
    typer.Option(
        FLAG,
        metavar="FILE|-|http://HOST:PORT|unix:PATH",
        help="Envoy's configuration: the answer to /config_dump?include_eds in a file, or the admin interface to ask "
        "(with --live in the pod's namespace).",
    ),
]
Url = Annotated[str, typer.Option(metavar="URL", help="With --envoy: the request; its address is taken from the dump.")]
Host = Annotated[str, typer.Option(metavar="NAME", help="With --envoy: the request's Host. Unset: the address.")]
PathName = Annotated[str, typer.Option("--path", metavar="PATH", help="With --envoy: the request's path.")]
Method = Annotated[str, typer.Option(metavar="NAME", help="With --envoy: the request's method.")]
Header = Annotated[
    list[str] | None, typer.Option(metavar="NAME:VALUE", help="With --envoy: a header of the request; may be repeated.")
]
Speaks = Annotated[
    str, typer.Option(metavar="|".join(CLIENTS), help="With --envoy: what the client speaks. Unset: each kind.")
]
Sni = Annotated[str, typer.Option(metavar="NAME", help="With --envoy: the name that a client of TLS asks for.")]


class RequestFlags(Record):
    """The flags that describe a request and its client; empty where a flag is not given."""

    url: str = ""
    host: str = ""
    path: str = ""
    method: str = ""
    headers: tuple[str, ...] = ()
    speaks: str = ""
    sni: str = ""


class ParsedUrl(Record):
    """The parts of a URL."""

    tls: bool
    host: str
    port: int
    path: str

    @property
    def name(self) -> str:
        """The host without its port and brackets."""
        return urlsplit(f"//{self.host}").hostname or ""


def configuration(source: str, options: Options, where: Where) -> Configuration:
    """Envoy's configuration. OptionError or KernelError, in one line, if it can't be read."""
    try:
        if not envoy_admin.is_address(source):
            text = input_file.read(FLAG, source, envoy_admin.LONGEST, "dump only some resources (name_regex=...)")
            with working("reading the proxy's configuration"):
                return Configuration(load(text))
        if is_live(options, where) and source.startswith(envoy_admin.HTTP):
            with access.namespace(placed(options, where)), working("reading the proxy's configuration"):
                return fetch(source)
        with working("reading the proxy's configuration"):
            return fetch(source)
    except DumpError as error:
        raise OptionError(FLAG, source, str(error)) from None
    except KernelError as error:
        raise KernelError(f"{FLAG}: {error}", error.errno) from None


def fetch(source: str) -> Configuration:
    """The configuration from the admin interface at an address, in the calling thread's network namespace."""
    dump = load(_text(source, envoy_admin.get(source, DUMP_PATH)))
    return Configuration(with_health(dump, _text(source, envoy_admin.get(source, HEALTH_PATH))))


def _text(source: str, data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise KernelError(f"{shown(source)}: not text in UTF-8; is it Envoy's admin port?") from None


def proxy(source: str, flags: RequestFlags, options: Options, where: Where) -> Configuration | None:
    """Envoy's configuration from --envoy, or, for a request to a running pod, from its admin port.

    None without a proxy and a request; UsageError for a request without a proxy.
    """
    if source:
        return configuration(source, options, where)
    request_flags = [
        f"--{field.removesuffix('s') if field == 'headers' else field}"
        for field in RequestFlags._fields
        if getattr(flags, field)
    ]
    if request_flags and not is_live(options, where):
        raise UsageError(f"{', '.join(request_flags)}: only the proxy routes requests; add --envoy")
    return configuration(ADMIN, options, where) if request_flags else None


def parse_url(text: str) -> ParsedUrl:
    """The parts of a URL; OptionError unless it is http or https."""
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise OptionError("--url", text, str(error)) from None
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise OptionError("--url", text, "not a URL such as http://ratings:9080/v2")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    tls = parts.scheme == "https"
    return ParsedUrl(tls, parts.netloc.rpartition("@")[2], port if port is not None else 443 if tls else 80, path)


def destination(about: Configuration, url: ParsedUrl, *, inbound: bool) -> str:
    """A URL's destination, as --to has it; inbound it is always the pod."""
    if inbound:
        return f":{url.port}"
    address = address_of(about, url.name, url.port)
    if address is None:
        why = f"no virtual host or listener in the dump has an address for {shown(url.name)}; give it with --to"
        raise OptionError("--url", url.host, why)
    return endpoint_text(address, url.port)


def clients(flags: RequestFlags, url: ParsedUrl | None, default_host: str, *, inbound: bool) -> tuple[Client, ...]:
    """The clients that the flags describe, with their request."""
    if flags.speaks:
        names: tuple[str, ...] = (choice("--speaks", flags.speaks, tuple(CLIENTS)),)
    elif url is None:
        names = tuple(CLIENTS)
    elif url.tls:
        names = ("tls",)
    else:
        # Other sidecars send the same request over mutual TLS.
        names = ("http", "mtls") if inbound else ("http",)
    path = flags.path or (url.path if url else "/")
    if not path.startswith(("/", "*")):
        raise OptionError("--path", path, "a path begins with /")
    host = flags.host or (url.host if url else default_host)
    request = HttpCall(host, path, flags.method or "GET", tuple(map(_header, flags.headers)))
    name = urlsplit(f"//{host}").hostname or ""
    sni = flags.sni or ("" if packed(name) else name)
    return tuple(_with(CLIENTS[name], request, sni) for name in names)


def _with(client: Client, request: HttpCall, sni: str) -> Client:
    return client.replace(request=request, sni=sni if client.transport == "tls" else "")


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        raise OptionError("--header", text, "not NAME:VALUE")
    return name.strip().lower(), value.strip()


def explain_command(  # noqa: PLR0913, PLR0917 (a command line's options)
    options: Options, where: Where, source: str, flags: RequestFlags, pod_address: str, runs_as: str
) -> str:
    """The `istio-init explain` that asks the same proxy about another packet, whose flags are put behind it."""
    values = {
        "--pid": "" if where.pid is None else str(where.pid), "--container": where.container or "",
        "--from-save": where.save, "--pod-address": pod_address, "--proxy-runs-as": runs_as, FLAG: source,
        "--host": flags.host, "--path": flags.path, "--speaks": flags.speaks,
    }  # fmt: skip
    words = [word for word in arguments(options) if not word.startswith("--log_")]
    words += ["--live"] if where.live else []
    words += [word for flag, value in values.items() if value for word in (flag, value)]
    return shlex.join(["istio-init", "explain", *words])


def has_ipv6(about: Configuration) -> bool:
    """Whether any of Envoy's sockets is for IPv6."""
    return any(len(socket.address) == 16 for each in about.listeners.all if each.bound for socket in each.sockets)


def fit(about: Subject, proxy: Configuration) -> Fit:
    """Whether the rules and the proxy fit."""
    pods = tuple(Pod(ruleset, about.facts, about.envoy, proxy) for ruleset in about.rulesets)
    listening = None
    if about.live:
        with access.namespace(about.options):
            listening = tcp_connections.listening()
    with working("holding rules and proxy against each other"):
        return prove(pods, about.options, listening)


def answers_to(
    about: Subject, proxy: Configuration, packet: Packet, flags: RequestFlags, *, inbound: bool
) -> tuple[Answer, ...]:
    """The answer to a packet that opens a connection, for each client that the flags describe."""
    url = parse_url(flags.url) if flags.url else None
    called = endpoint_text(packet.destination, packet.destination_port)
    pod = Pod(about.ruleset(packet.family), about.facts, about.envoy, proxy)
    return answers(pod, packet, clients(flags, url, called, inbound=inbound))
