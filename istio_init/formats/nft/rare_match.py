"""Matches in nftables' terms that a plain plan does not have, and the error for those that nftables lacks."""

from __future__ import annotations

from istio_init.errors import InitError, shown
from istio_init.formats.nft.inet_rule import ports
from istio_init.model.extensions import ConnMark, CtState, Mark, Multiport

TYPE_CHECKING = False
if TYPE_CHECKING:
    from istio_init.model.inet import InetMatch
    from istio_init.model.unknown import Comment, UnknownMatch


def rare_match(match: Multiport | Mark | ConnMark | CtState | Comment | UnknownMatch, protocol: int) -> InetMatch:
    """A match in nftables' terms. InitError if it has none."""
    if isinstance(match, Multiport):
        if match.side == "ports":
            raise inexpressible(match, "a match on either side's port")
        return ports(protocol, "sport" if match.side == "sports" else "dport", match.ports, match)
    if isinstance(match, CtState) and (match.negated or not match.states or {"SNAT", "DNAT"} & set(match.states)):
        raise inexpressible(match, "this match on the connection's state")
    if isinstance(match, Mark | ConnMark | CtState):
        return match
    from istio_init.model.unknown import UnknownMatch

    if isinstance(match, UnknownMatch):
        return match
    raise inexpressible(match, "a comment before other matches")


def inexpressible(value: object, what: str) -> InitError:
    """The error for a value, or a part of a rule, that has no form in nftables."""
    text = value if isinstance(value, str) else repr(value)
    return InitError(f"--native-nftables: {shown(text)}: {what} has no form there; leave the flag out")
