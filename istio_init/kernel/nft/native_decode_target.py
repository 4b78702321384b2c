"""The target of an inet rule from its last expressions, as native_encode.py writes them, or nft."""

from __future__ import annotations

from istio_init.kernel.netlink.channel import attributes
from istio_init.kernel.netlink.nfnetlink import name
from istio_init.kernel.nft.expressions import (
    CT_MARK,
    CT_ZONE,
    GOTO,
    JUMP,
    MARK,
    VERDICTS,
)
from istio_init.kernel.nft.native_decode_match import BYTE_ORDER, FAMILY_OF, constant_of, loaded_field, number_of
from istio_init.model.extensions import (
    CtZone,
    RestoreMark,
    SaveMark,
    SetMark,
    Tproxy,
)
from istio_init.model.inet import iptables_name
from istio_init.model.rules import (
    IPV4,
    Jump,
    PortRange,
    Redirect,
    Verdict,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from istio_init.kernel.nft.native_decode_match import Expression
    from istio_init.model.rules import Target


_VERDICTS = {code: verdict for verdict, code in VERDICTS.items()}


def read_target(expressions: Sequence[Expression], begin: int) -> tuple[Target | None, int]:
    """The target at the end of a rule whose matches end at `begin`, and where it begins.

    A verdict counts whatever precedes it; None means expressions that are no target in iptables.
    """
    rest = expressions[begin:]
    if not rest:
        return Verdict(""), begin
    kinds = "+".join(kind for kind, _ in rest)
    read = _TARGETS.get(kinds)
    try:
        if read is not None:
            return read(*[attrs for _, attrs in rest]), begin
        if rest[-1][0] == "immediate" and not any(kind in _SETTERS for kind, _ in rest[:-1]):
            return verdict_of(rest[-1][1]), len(expressions) - 1
    except (KeyError, ValueError):
        pass
    return None, len(expressions)


# Expressions after which a packet is no longer as it was, or the rule does more than its verdict.
_SETTERS = {"meta", "ct", "immediate", "redir", "tproxy", "nat", "masq", "payload", "dup", "fwd", "objref", "dynset"}


def verdict_of(attrs: dict[int, bytes]) -> Target:
    """The verdict or jump that an immediate expression is. ValueError or KeyError where it is none."""
    data = attributes(attributes(attrs[2])[2])
    code = int.from_bytes(data[1], "big", signed=True)
    if any(attrs[1]):
        raise ValueError("not a verdict")
    if 2 in data:
        if code not in {JUMP, GOTO}:
            raise ValueError("not a jump")
        return Jump(iptables_name(name(data[2])), code == GOTO)
    return Verdict(_VERDICTS[code])  # type: ignore[arg-type]


def _constant(attrs: dict[int, bytes], register: int = 1) -> bytes:
    """What is loaded into a register."""
    if number_of(attrs[1]) != register:
        raise ValueError("another register")
    return constant_of(attrs[2])


def _redirect(*attrs: dict[int, bytes]) -> Target:
    *ports, redirection = attrs
    low, high = _constant(ports[0]), _constant(ports[-1], len(ports))
    registers = {number: number_of(redirection[number]) for number in (1, 2) if number in redirection}
    whole = {1: 1} if len(ports) == 1 else {1: 1, 2: 2}
    # Of a single port, the kernel may repeat the register.
    if registers not in (whole, {1: 1, 2: len(ports)}) or number_of(redirection[3]) != 2:
        raise ValueError("not a plain redirection")
    return Redirect(PortRange(number_of(low), number_of(high)))


def _tproxy(*attrs: dict[int, bytes]) -> Target:
    port, redirection, mark, setting, end = attrs
    if redirection.keys() != {1, 3} or number_of(redirection[3]) != 1 or verdict_of(end) != Verdict("ACCEPT"):
        raise ValueError("not as iptables' TPROXY")
    family = FAMILY_OF[number_of(redirection[1])]
    return Tproxy(number_of(_constant(port)), bytes(4 if family == IPV4 else 16), _set_mark(mark, setting).value)


def _set_mark(mark: dict[int, bytes], setting: dict[int, bytes]) -> SetMark:
    if setting.keys() != {2, 3} or number_of(setting[2]) != MARK or number_of(setting[3]) != 1:
        raise ValueError("not a mark")
    return SetMark(int.from_bytes(_constant(mark), BYTE_ORDER))


def _set_zone(zone: dict[int, bytes], setting: dict[int, bytes]) -> Target:
    if setting.keys() != {2, 4} or number_of(setting[2]) != CT_ZONE or number_of(setting[4]) != 1:
        raise ValueError("not a zone")
    return CtZone(int.from_bytes(_constant(zone), BYTE_ORDER))


def _save_mark(load: dict[int, bytes], setting: dict[int, bytes]) -> Target:
    if loaded_field("meta", load) != ("meta", MARK) or setting.keys() != {2, 4} or number_of(setting[2]) != CT_MARK:
        raise ValueError("not a saved mark")
    return SaveMark()


def _restore_mark(load: dict[int, bytes], setting: dict[int, bytes]) -> Target:
    if loaded_field("ct", load) != ("ct", CT_MARK) or setting.keys() != {2, 3} or number_of(setting[2]) != MARK:
        raise ValueError("not a restored mark")
    return RestoreMark()


# By the kinds of a target's expressions, in order.
_TARGETS: dict[str, Callable[..., Target]] = {
    "immediate": verdict_of,
    "immediate+redir": _redirect,
    "immediate+immediate+redir": _redirect,
    "immediate+tproxy+immediate+meta+immediate": _tproxy,
    "immediate+meta": _set_mark,
    "immediate+ct": _set_zone,
    "meta+ct": _save_mark,
    "ct+meta": _restore_mark,
}
