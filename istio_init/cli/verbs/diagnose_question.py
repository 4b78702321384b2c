"""What a diagnosis is asked about, and what was wanted there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from istio_init.model import parsers
from istio_init.options.table import Options
from istio_init.record import Record

if TYPE_CHECKING:
    from collections.abc import Mapping

    from istio_init.inspect.diagnose.case import Resident

# What Istio's injection asks for, where nothing else is known: a pod without rules that is asked about.
USUAL = Options(
    istio_inbound_ports=parsers.ALL,
    istio_service_cidr=parsers.ALL,
    istio_local_exclude_ports=parsers.ports("15090,15021,15020"),
)


class Question(Record):
    """What a command line asks about: the place, as flags name it."""

    pod: str = ""
    container: str | None = None
    pid: int | None = None
    netns: str = ""
    manifest: str = ""
    save: str = ""
    cri_socket: str = ""

    @property
    def places(self) -> list[str]:
        """The flags that name a place."""
        named = {
            "POD": self.pod, "--container": self.container, "--pid": self.pid, "--netns": self.netns,
            "--from-save": self.save,
        }  # fmt: skip
        return [flag for flag, value in named.items() if value not in {None, ""}]


class Intent(Record):
    """What was wanted of a pod: options and their source, or why nothing is captured in it."""

    options: Options | None = None
    source: str = ""
    refusal: str = ""
    host_network: bool = False
    residents: tuple[Resident, ...] = ()
    hosts: Mapping[str, bytes] = {}
    uninjected: bool = False

    @property
    def mode_none(self) -> str:
        """That interception mode NONE was wanted; empty where it was not."""
        return f"{self.source}: {self.refusal}" if "NONE" in self.refusal else ""
