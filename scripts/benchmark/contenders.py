"""Who is timed: the program in each of its ways, and everyone else who can do the same job."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

from . import ebpf, growth, peers
from .installation import ROOT, Unavailable, Variant, environment, install
from .processes import Command, Contender

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

REDIRECT = "-p 15001 -z 15006 -u 1337 -m REDIRECT -i '*' -x '' -b '*' -d 15090,15020"
TPROXY = "-p 15001 -z 15006 -u 1337 -m TPROXY -i '*' -x '' -b '*' -d 15090,15020"
RULES = {
    "redirect": shlex.split(REDIRECT),
    "dual-stack": shlex.split(f"{REDIRECT} --enable-ipv6"),
    "tproxy": shlex.split(f"{TPROXY} --enable-ipv6 --redirect-dns --dns-servers 10.0.0.10,fd00::10"),
}
# What the CNI plugin is told to make of a pod: the rules of `redirect`.
PLUGIN = {"istio-service-cidr": "*", "istio-inbound-ports": "*", "istio-local-exclude-ports": "15090,15020"}
MEANING = {
    "redirect": "REDIRECT, IPv4",
    "dual-stack": "REDIRECT, IPv4 and IPv6",
    "tproxy": "TPROXY and DNS, IPv4 and IPv6",
}

# The flags that choose each backend.
BACKENDS = {
    "legacy": ("--force-iptables-binary", "legacy"),
    "nft": ("--force-iptables-binary", "nft"),
    "native": ("--native-nftables",),
}

CHOICES = {
    "without -S": Variant(flags=" -IXutf8"),
    "without -I -S": Variant(flags=" -Xutf8"),
    "without -X utf8": Variant(flags=" -IS"),
    "modules in files": Variant(modules=True),
    "modules in files, checked by time": Variant(modules=True, byte_code="timestamp", beside=True),
    "modules in files, checked by hash": Variant(modules=True, byte_code="checked-hash", beside=True),
    "modules in files, no byte code": Variant(flags=" -ISBXutf8", modules=True, byte_code="", beside=True),
    "garbage collected": Variant(first="import gc\ngc.disable = int"),
    "an orderly exit": Variant(first="import posix, sys\nposix._exit = sys.exit"),
}

MODULES = (
    *("os", "_ctypes", "ctypes", "_socket", "struct", "contextlib", "functools", "collections", "enum", "re"),
    *("typing", "dataclasses", "signal", "socket", "json", "ipaddress", "pathlib", "subprocess", "logging", "argparse"),
)
PACKAGES = ("typer", "pyroute2", "iptc")

# Whom the contenders of a table are compared with, beside the bare interpreter: they take part in the same rounds.
COMPARED = {
    "others": tuple(RULES),
    "peers": tuple(f"{rules}, same flags" for rules in peers.ISTIO),
    "plugin": ("redirect",),
    "choices": ("redirect",),
}
# The tables in which all are single processes of Python, whose instructions tell what is too small for a clock.
COUNTED = ("ways", "plugin", "choices")


class Field:
    """All contenders by name; each is made, and what it needs installed, when it is asked for."""

    def __init__(
        self, python: str, directory: Path, installed: Path | None, others: Iterable[peers.Peer] = (),
        node: ebpf.Node | None = None,
    ) -> None:  # fmt: skip
        self._python, self._directory, self._node = python, directory, node or ebpf.Node(directory)
        self._bin: Path | Unavailable | None = installed
        # By the table that they are in, then by name.
        self._groups: dict[str, dict[str, Callable[[str], Contender]]] = {
            "ways": self._ways(),
            "others": self._others(),
            "peers": self._peers(others),
            "plugin": self._plugins(),
            "lists": self._lists(),
            "choices": {name: partial(self._variant, variant) for name, variant in CHOICES.items()},
            "imports": {
                **{f"import {module}": partial(self._bare, f"import {module}") for module in MODULES},
                **{f"import {module}": partial(self._package, module) for module in PACKAGES},
            },
        }

    def _ways(self) -> dict[str, Callable[[str], Contender]]:
        return {
            "bare": partial(self._bare, "pass"),
            **{rules: partial(self._ours, flags, MEANING[rules]) for rules, flags in RULES.items()},
            **{f"{rules} in place": partial(self.in_place, flags) for rules, flags in RULES.items()},
            "dry-run": partial(self._ours, [*RULES["redirect"], "--dry-run"], "redirect, printed only"),
            "console script": partial(self._installed, "istio-iptables", RULES["redirect"]),
            "python -m": partial(self._installed, "python", ["-m", "istio_init", *RULES["redirect"]]),
            "help": partial(self._installed, "istio-iptables", ["--help"]),
        }

    def _others(self) -> dict[str, Callable[[str], Contender]]:
        makers: dict[str, Callable[[str], Contender]] = {}
        for rules, flags in RULES.items():
            for backend in ("legacy", "nft"):
                makers[f"{rules} by {backend}-restore"] = partial(self.restore, flags, backend)
            makers[f"{rules} by python-iptables"] = partial(self._engine, flags)
            makers[f"{rules} as nftables"] = partial(self._ours, [*flags, "--native-nftables"], "istio-init")
        return makers

    def _peers(self, named: Iterable[peers.Peer]) -> dict[str, Callable[[str], Contender]]:
        """The programs of --peer, and this one with the flags that Istio's takes too, in the same namespaces."""
        makers: dict[str, Callable[[str], Contender]] = {}
        for peer in named:
            for rules in peers.ISTIO:
                makers[f"{rules} by {peer.name}"] = partial(self._peer, peer, rules)
                makers[f"{rules} in place by {peer.name}"] = partial(self._peer, peer, rules, again=True)
        if makers:
            for rules, flags in peers.ISTIO.items():
                makers[f"{rules}, same flags"] = partial(self._beside, rules, flags)
        return makers

    def _plugins(self) -> dict[str, Callable[[str], Contender]]:
        makers: dict[str, Callable[[str], Contender]] = {}
        for verb in ("VERSION", "ADD", "DEL"):
            makers[f"plugin {verb}"] = partial(self._plugin, verb, "its bundle", lambda: self.bundle)
            makers[f"plugin {verb} by pip"] = partial(self._plugin, verb, "", lambda: self.bin)
        for verb in ("ADD", "DEL"):
            makers[f"plugin {verb}, eBPF"] = partial(self._plugin, verb, "its bundle", lambda: self.bundle)
        return makers

    def _lists(self) -> dict[str, Callable[[str], Contender]]:
        makers: dict[str, Callable[[str], Contender]] = {}
        for name in growth.LISTS:
            for backend, chosen in BACKENDS.items():
                flags = [*growth.listed(name), *chosen]
                makers[f"{name}, {backend}"] = partial(self._ours, flags, "")
                makers[f"{name}, {backend} in place"] = partial(self.in_place, flags)
        return makers

    def groups(self) -> dict[str, list[str]]:
        """The names of all contenders by the table that they are in."""
        return {group: list(makers) for group, makers in self._groups.items()}

    def contender(self, name: str) -> Contender:
        """The contender of a name; Unavailable where this machine can't run it."""
        return next(makers[name](name) for makers in self._groups.values() if name in makers)

    @cached_property
    def command(self) -> str:
        """The program as the image holds it."""
        return install(self._python, self._directory / "image", Variant())

    @cached_property
    def bundle(self) -> Path:
        """The directory of the CNI plugin with an interpreter of its own."""
        out = self._directory / "plugins"
        done = subprocess.run([ROOT / "scripts/bundle-cni", out, out], check=False, capture_output=True, text=True)
        if done.returncode:
            raise Unavailable(f"no bundle: {done.stderr.strip()}")
        return out

    @property
    def bin(self) -> Path:
        """The bin directory of a virtual environment that the program is installed in by pip, made once."""
        if self._bin is None:
            try:
                self._bin = environment(self._python, self._directory / "venv")
            except Unavailable as reason:
                self._bin = reason
        if isinstance(self._bin, Unavailable):
            raise self._bin
        return self._bin

    def in_place(self, flags: list[str], name: str) -> Contender:
        """The program where it has done its work before."""
        command = Command((self.command, *flags))
        return Contender(name, (command,), (command,))

    def restore(self, flags: list[str], backend: str, name: str) -> Contender:
        """iptables-restore and, where there are rules for it, ip6tables-restore, given the same rules as text."""
        texts = self._texts(flags)
        return Contender(name, tuple(Command((program(f"{p}-{backend}-restore"),), path) for p, path in texts))

    def _bare(self, code: str, name: str) -> Contender:
        return Contender(name, (Command((self._python, "-I", "-S", "-c", code)),))

    def _ours(self, flags: list[str], what: str, name: str) -> Contender:
        return Contender(name, (Command((self.command, *flags)),), what=what)

    def _peer(self, peer: peers.Peer, rules: str, name: str, *, again: bool = False) -> Contender:
        flags = peer.rules().get(rules)
        if flags is None:
            raise Unavailable(f"{peer.name} has no flags for {MEANING[rules]}")
        return self._addressed(rules, Command((*peer.command, *flags)), name, again=again)

    def _beside(self, rules: str, flags: list[str], name: str) -> Contender:
        return self._addressed(rules, Command((self.command, *flags)), name)

    def _addressed(self, rules: str, command: Command, name: str, *, again: bool = False) -> Contender:
        """A contender whose namespace has addresses before it starts, and, for `again`, its own rules."""
        ip = program("ip")
        before = [Command((ip, "address", "add", address, "dev", "lo")) for address in peers.ADDRESSES[rules]]
        return Contender(name, (command,), (*before, *((command,) if again else ())), MEANING[rules])

    def _installed(self, entry: str, arguments: list[str], name: str) -> Contender:
        return Contender(name, (Command((str(self.bin / entry), *arguments)),), what="by pip")

    def _package(self, module: str, name: str) -> Contender:
        python = str(self.bin / "python")
        if subprocess.run([python, "-c", name], check=False, capture_output=True).returncode:
            raise Unavailable(f"{module} is not installed, or can't be")
        return Contender(name, (Command((python, "-I", "-c", name)),), what="by pip")

    def _variant(self, variant: Variant, name: str) -> Contender:
        command = install(self._python, self._directory / name.replace(" ", "-"), variant)
        return Contender(name, (Command((command, *RULES["redirect"])),), what="redirect")

    def _plugin(self, verb: str, what: str, place: Callable[[], Path], name: str) -> Contender:
        by_ebpf = name.endswith("eBPF")
        configuration = self._directory / ("network-ebpf.json" if by_ebpf else "network.json")
        places = {"log_file": str(self._directory / "cni.log"), "run_dir": str(self._directory / "marks")}
        network: dict[str, object] = {"cniVersion": "1.1.0", "name": "bench", "type": "istio-init-cni", **places}
        network["istio"] = {**PLUGIN, "capture-backend": "ebpf"} if by_ebpf else PLUGIN
        if by_ebpf:
            self._node.begin()
        configuration.write_text(json.dumps(network))

        def call(verb: str) -> Command:
            variables = [("CNI_COMMAND", verb), ("CNI_CONTAINERID", "bench"), ("CNI_IFNAME", "eth0")]
            variables += self._node.variables if by_ebpf else ()
            return Command((str(place() / "istio-init-cni"),), str(configuration), tuple(variables))

        # What is captured comes from the pod's address, so that there has to be one.
        addressed = (Command((program("sh"), "-c", ebpf.ADD_ADDRESS)),) if by_ebpf else ()
        before = (*addressed, *((call("ADD"),) if verb == "DEL" else ()))
        return Contender(name, (call(verb),), before, what, outside=True)

    def _engine(self, flags: list[str], name: str) -> Contender:
        self._package("iptc", "import iptc")
        engine = [*flags, "--iptables-engine", "python-iptables"]
        return Contender(name, (Command((str(self.bin / "istio-iptables"), *engine)),))

    def _texts(self, flags: list[str]) -> Iterator[tuple[str, str]]:
        """For each family that has rules, the prefix of its programs' names, and a file with its rules."""
        for family, prefix in (("ipv4", "iptables"), ("ipv6", "ip6tables")):
            printing = [self.command, *flags, "--dry-run", "--ip-family", family]
            text = subprocess.run(printing, stdout=subprocess.PIPE, text=True, check=True).stdout
            if "COMMIT" in text:
                path = self._directory / f"{prefix}-{len(list(self._directory.iterdir()))}"
                path.write_text(text)
                yield prefix, str(path)


def program(name: str) -> str:
    """The path of a program of this machine; Unavailable where it isn't there."""
    path = shutil.which(name)
    if path is None:
        raise Unavailable(f"there is no {name} in PATH")
    return path
