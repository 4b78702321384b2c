"""What a connection's walk through a proxy knows so far, and how it ends."""

from __future__ import annotations

from istio_init.envoy.passage import Other, Passage, Step, Stop
from istio_init.formats.addresses import endpoint_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from istio_init.envoy.client import Client
    from istio_init.envoy.dump import Dump
    from istio_init.envoy.node import Node
    from istio_init.envoy.passage import Dial, Ending, Part


class Ended(Exception):
    """The walk ends before Envoy dials; the parameters are those of a Stop."""

    def __init__(self, kind: Ending, text: str, flag: str = "", status: int = 0) -> None:
        super().__init__(text)
        self.end = Stop(kind, text, flag, status)


class Progress:
    """The steps and conditions so far, the access log's names, and what later parts of Envoy depend on.

    `client` is who speaks, which changes where TLS is terminated. `restored` says whether the listener restored the
    destination, `is_request` whether a route chose the cluster, so that a failure is an HTTP answer. `spoofs` is the
    configuration of the original_src filter: Envoy dials from the client's address.
    """

    def __init__(self, dump: Dump, client: Client) -> None:
        self.dump, self.client = dump, client
        self.steps: list[Step] = []
        self.conditions: list[str] = []
        self.listener = self.chain = self.route = self.cluster = ""
        self.dials: tuple[Dial, ...] = ()
        self.spoofs: Node | None = None
        self.restored = self.is_request = False

    def step(self, part: Part, text: str, path: str = "", others: tuple[Other, ...] = ()) -> None:
        """Add a step."""
        self.steps.append(Step(part, text, path, others))

    def passage(self, end: Stop | None = None) -> Passage:
        """The whole path; without an end, Envoy dials."""
        if end is None:
            end = Stop("dials", " or ".join(endpoint_text(each.address, each.port) for each in self.dials))
        return Passage(
            tuple(self.steps), end, self.listener, self.chain, self.route, self.cluster, self.dials,
            tuple(dict.fromkeys(self.conditions)),
        )  # fmt: skip
