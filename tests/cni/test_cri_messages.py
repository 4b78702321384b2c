"""The generated CRI messages: they are those of cri.proto, and a part of the CRI's own."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import cri_api.v1.api_pb2 as api
from hypothesis import given
from hypothesis import strategies as st

from istio_init.cni.node import cri_pb2
from istio_init.cni.node.cri_pb2 import ListPodSandboxResponse

PROTO = Path(cri_pb2.__file__).with_name("cri.proto")
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


def fields(message: Any) -> dict[str, tuple[int, int, bool]]:  # noqa: ANN401 (protobuf's)
    """Each field's number, type on the wire, and whether it is repeated."""
    return {each.name: (each.number, each.type, each.is_repeated) for each in message.fields}


def test_every_field_is_one_of_the_cri() -> None:
    messages = cri_pb2.DESCRIPTOR.message_types_by_name
    assert messages
    for name, message in messages.items():
        official = fields(api.DESCRIPTOR.message_types_by_name[name])
        assert fields(message).items() <= official.items()
    for name, enum in cri_pb2.DESCRIPTOR.enum_types_by_name.items():
        values = {each.name: each.number for each in enum.values}
        assert values == {each.name: each.number for each in api.DESCRIPTOR.enum_types_by_name[name].values}


def test_the_generated_code_is_that_of_the_proto_file() -> None:
    text = PROTO.read_text()
    for name, body in re.findall(r"^message (\w+) \{(.*?)\}$", text, re.DOTALL | re.MULTILINE):
        written = {field: int(number) for field, number in re.findall(r"(\w+) = (\d+);", body)}
        message = cri_pb2.DESCRIPTOR.message_types_by_name[name]
        assert written == {each.name: each.number for each in message.fields}
    assert text.count("\nmessage ") == len(cri_pb2.DESCRIPTOR.message_types_by_name)


@given(items=st.lists(SANDBOXES, max_size=3))
def test_what_a_runtime_writes_is_read(items: list[Any]) -> None:
    data = api.ListPodSandboxResponse(items=items).SerializeToString()
    for actual, wrote in zip(ListPodSandboxResponse.FromString(data).items, items, strict=True):
        assert (actual.id, actual.metadata.name, actual.metadata.uid) == (
            wrote.id,
            wrote.metadata.name,
            wrote.metadata.uid,
        )
        assert (actual.metadata.namespace, actual.state) == (wrote.metadata.namespace, wrote.state)
        assert dict(actual.annotations) == dict(wrote.annotations)
