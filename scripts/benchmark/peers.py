"""Other programs for the same job, as `--peer NAME=COMMAND` names them, and the flags that make them do it.

Two families of flags are known: Istio's (istio-iptables, pilot-agent istio-iptables, and this program) and Linkerd's
(linkerd2-proxy-init, proxy-init). Which one a program takes is asked of its own `--help`.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .installation import Unavailable

if TYPE_CHECKING:
    from collections.abc import Mapping

_ISTIO = "-p 15001 -z 15006 -u 1337 -i '*' -b '*' -d 15090,15020"
# Flags that Istio's own program takes as well; the DNS servers are those of /etc/resolv.conf.
ISTIO = {
    "redirect": shlex.split(f"{_ISTIO} -m REDIRECT"),
    "dual-stack": shlex.split(f"{_ISTIO} -m REDIRECT --dual-stack"),
    "tproxy": shlex.split(f"{_ISTIO} -m TPROXY --redirect-dns --dual-stack"),
}
_LINKERD = "-p 4143 -o 4140 -u 2102 --inbound-ports-to-ignore 4190,4191"
# There is no TPROXY in Linkerd.
LINKERD = {
    "redirect": shlex.split(f"{_LINKERD} --ipv6=false"),
    "dual-stack": shlex.split(f"{_LINKERD} --ipv6=true"),
}
# By a flag that only programs of the family have.
FAMILIES: Mapping[str, Mapping[str, list[str]]] = {"--istio-service-cidr": ISTIO, "--incoming-proxy-port": LINKERD}
# Addresses of the namespace, by rules: Istio's program takes the families that it writes from them.
ADDRESSES = {
    "redirect": ("192.0.2.10/24",),
    "dual-stack": ("192.0.2.10/24", "2001:db8::10/64"),
    "tproxy": ("192.0.2.10/24", "2001:db8::10/64"),
}


@dataclass(frozen=True, slots=True)
class Peer:
    """A program that is timed beside this one: its name in the tables, and its command without any flags."""

    name: str
    command: tuple[str, ...]

    def rules(self) -> Mapping[str, list[str]]:
        """Return its flags by the rules that they ask for; Unavailable if it takes flags of no known family."""
        try:
            done = subprocess.run(
                [*self.command, "--help"],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
                timeout=60,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise Unavailable(f"{shlex.join(self.command)} --help: {error}") from error
        for flag, rules in FAMILIES.items():
            if flag in done.stdout + done.stderr:
                return rules
        raise Unavailable(f"{shlex.join(self.command)}: --help names none of {', '.join(FAMILIES)}")


def parse(text: str) -> Peer:
    """Read NAME=COMMAND, as in `istio=/usr/local/bin/pilot-agent istio-iptables`; ValueError where it is none."""
    name, equals, command = text.partition("=")
    words = shlex.split(command)
    if not name or not equals or not words:
        raise ValueError(f"{text!r}: not NAME=PATH")
    path = shutil.which(words[0])
    if path is None:
        raise ValueError(f"{text!r}: {words[0]}: not an executable program")
    return Peer(name, (path, *words[1:]))
