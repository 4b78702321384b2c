"""The CRI's messages as we read them, and as Google's own library writes them."""

from __future__ import annotations

import cri_api.v1.api_pb2 as api
import pytest
from hypothesis import given
from hypothesis import strategies as st

from istio_init.cni.node import protobuf
from istio_init.cni.node.protobuf import Message

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
PAIRS = st.dictionaries(TEXT, TEXT, max_size=4)
SANDBOXES = st.builds(
    api.PodSandbox,
    id=TEXT,
    metadata=st.builds(api.PodSandboxMetadata, name=TEXT, uid=TEXT, namespace=TEXT, attempt=st.integers(0, 2**32 - 1)),
    state=st.sampled_from([api.SANDBOX_READY, api.SANDBOX_NOTREADY]),
    created_at=st.integers(-(2**63), 2**63 - 1),
    labels=PAIRS,
    annotations=PAIRS,
)


@given(items=st.lists(SANDBOXES, max_size=3))
def test_what_google_writes_is_read(items: list[api.PodSandbox]) -> None:
    found = Message(api.ListPodSandboxResponse(items=items).SerializeToString()).messages(1)
    assert len(found) == len(items)
    for read, wrote in zip(found, items, strict=True):
        about = read.message(2)
        assert (read.text(1), about.text(1), about.text(2), about.text(3)) == (
            wrote.id,
            wrote.metadata.name,
            wrote.metadata.uid,
            wrote.metadata.namespace,
        )
        assert (about.number(4), read.number(3)) == (wrote.metadata.attempt, wrote.state)
        assert read.number(4) == wrote.created_at % 2**64
        assert (read.pairs(5), read.pairs(6)) == (dict(wrote.labels), dict(wrote.annotations))


@given(identity=TEXT, verbose=st.booleans())
def test_what_is_written_google_reads(identity: str, *, verbose: bool) -> None:
    data = protobuf.text(1, identity) + protobuf.truth(2, value=verbose)
    read = api.PodSandboxStatusRequest.FromString(data)
    assert (read.pod_sandbox_id, read.verbose) == (identity, verbose)


@given(sandbox=SANDBOXES, other=SANDBOXES)
def test_a_message_that_comes_in_two_parts_is_one(sandbox: api.PodSandbox, other: api.PodSandbox) -> None:
    data = sandbox.SerializeToString() + other.SerializeToString()
    both, read = api.PodSandbox.FromString(data), Message(data)
    assert read.message(2).text(1) == both.metadata.name
    assert read.pairs(6) == dict(both.annotations)


@given(data=st.binary(max_size=40))
def test_what_is_no_message_is_a_value_error_and_no_other(data: bytes) -> None:
    try:
        read = Message(data)
        for field in range(1, 4):
            for ask in (read.number, read.text, read.message, read.messages, read.pairs):
                ask(field)
    except ValueError:
        pass


@pytest.mark.parametrize(
    "data", [b"\x0a", b"\x0a\x05ab", b"\x09\x00", b"\x08", b"\x08" + b"\xff" * 11, b"\x0b", b"\x0f"]
)
def test_what_is_cut_off_is_no_message(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"ends in the middle|unknown kind"):
        Message(data)


def test_fields_of_another_kind_are_mistakes() -> None:
    read = Message(protobuf.text(1, "a") + protobuf.truth(2, value=True))
    with pytest.raises(ValueError, match="no number"):
        read.number(1)
    with pytest.raises(ValueError, match="no text"):
        read.text(2)
    assert (read.number(9), read.text(9), read.pairs(9), read.messages(9)) == (0, "", {}, [])
