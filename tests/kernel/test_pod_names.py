"""A resolver's files and messages, broken ones too."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from istio_init.kernel.host import pod_names
from istio_init.kernel.host.pod_names import ResolverFiles

HOSTS = """
127.0.0.1 localhost
10.0.0.7\tratings.example ratings # ratings.old
fe00::7 ratings six
bad line
"""
# A question of www.example, and an answer with an alias and two addresses, by pointers.
QUESTION = b"\x03www\x07example\0\0\1\0\1"
ANSWER = (
    b"\0\7\x81\x80\0\1\0\3\0\0\0\0" + QUESTION
    + b"\xc0\x0c\0\5\0\1\0\0\0\x3c\0\2\xc0\x10"
    + b"\xc0\x10\0\1\0\1\0\0\0\x3c\0\4\x0a\0\0\7"
    + b"\xc0\x10\0\x1c\0\1\0\0\0\x3c\0\x10" + bytes(15) + b"\7"
)  # fmt: skip


def test_a_hosts_file() -> None:
    assert pod_names.hosts(HOSTS) == {
        "localhost": b"\x7f\0\0\1",
        "ratings.example": b"\x0a\0\0\7",
        "ratings": b"\x0a\0\0\7",
        "six": bytes.fromhex("fe00") + bytes(13) + b"\7",
    }


def test_the_order_of_names() -> None:
    files = ResolverFiles({}, (), ("default.svc.cluster.local", "svc.cluster.local"), 5)
    assert pod_names.candidates("ratings", files) == (
        "ratings.default.svc.cluster.local",
        "ratings.svc.cluster.local",
        "ratings",
    )
    assert pod_names.candidates("a.b.c.d.e.f", files)[0] == "a.b.c.d.e.f"
    assert pod_names.candidates("ratings.", files) == ("ratings",)


def test_an_answer() -> None:
    assert pod_names.answers(ANSWER, pod_names.A) == [b"\x0a\0\0\7"]
    assert pod_names.answers(ANSWER, pod_names.AAAA) == [bytes(15) + b"\7"]


@given(st.integers(0, len(ANSWER)), st.integers(0, len(ANSWER) - 1), st.integers(0, 255))
def test_a_broken_answer_has_no_address_or_is_a_failure(length: int, at: int, byte: int) -> None:
    broken = bytearray(ANSWER)
    broken[at] = byte
    try:
        addresses = pod_names.answers(bytes(broken[:length]), pod_names.A)
    except OSError:
        return
    assert all(len(each) == 4 for each in addresses)
