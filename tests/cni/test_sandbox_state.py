"""Sandbox states: what is written is read back, and nothing else is ever read or written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from integration.kit.command_lines import command_lines
from istio_init.cni.plugin import sandbox_state
from istio_init.cni.plugin.sandbox_state import CAPTURED, LONGEST_IDENTITY, PASSED, SandboxState, SandboxStateError
from tests.kit.options import options

IDENTITY = "0f" * 32
TEXT = st.text()
OPTIONS = command_lines.map(lambda words: options(words, {}))
STATES = st.builds(
    SandboxState,
    st.from_regex(rf"[A-Za-z0-9][A-Za-z0-9_.-]{{0,{LONGEST_IDENTITY - 1}}}", fullmatch=True),
    st.sampled_from([CAPTURED, PASSED]),
    TEXT, TEXT, TEXT, TEXT, TEXT, st.integers(0, 2**64), st.none() | OPTIONS,
    st.lists(st.tuples(TEXT, TEXT)).map(tuple), TEXT,
)  # fmt: skip


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("states") / "made" / "here")


@given(state=STATES)
def test_what_is_written_is_read_back(directory: str, state: SandboxState) -> None:
    sandbox_state.write(state, directory)
    assert sandbox_state.read(state.container, directory) == state
    assert state.container in sandbox_state.containers(directory)
    sandbox_state.remove(state.container, directory)
    assert sandbox_state.read(state.container, directory) is None
    assert os.listdir(directory) == []


def test_only_root_may_read_states(directory: str) -> None:
    sandbox_state.write(SandboxState(IDENTITY, CAPTURED, "because"), directory)
    assert Path(directory).stat().st_mode & 0o777 == 0o700
    assert Path(directory, f"{IDENTITY}.json").stat().st_mode & 0o777 == 0o600
    sandbox_state.remove(IDENTITY, directory)


@pytest.mark.parametrize("name", ["", ".", "..", "../../etc/passwd", "a/b", "-a", "a b", "a\n", "ä", "x" * 201, "a\0"])
def test_a_name_that_is_no_identity_is_refused(directory: str, name: str) -> None:
    for act in (sandbox_state.read, sandbox_state.remove):
        with pytest.raises(SandboxStateError, match="not a container's identity"):
            act(name, directory)
    with pytest.raises(SandboxStateError, match="not a container's identity"):
        sandbox_state.write(SandboxState(name, CAPTURED, ""), directory)


def test_without_a_directory_there_are_no_states(tmp_path: Path) -> None:
    nowhere = str(tmp_path / "none")
    assert sandbox_state.containers(nowhere) == ()
    assert sandbox_state.read(IDENTITY, nowhere) is None
    sandbox_state.remove(IDENTITY, nowhere)


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "null", "{}", '{"decision": 1, "why": ""}', '{"decision": "", "why": "", "options": "-i"}',
        '{"decision": "", "why": "", "attachments": [1]}', "\xff",
        '{"decision": "", "why": "", "options": {"envoy_port": "1"}}',
    ],
)  # fmt: skip
def test_what_is_no_state_is_said_with_its_path(tmp_path: Path, text: str) -> None:
    path = tmp_path / f"{IDENTITY}.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(SandboxStateError, match=f"^{path}: not a sandbox.s state: "):
        sandbox_state.read(IDENTITY, str(tmp_path))


def test_a_mark_of_a_later_release_is_still_a_mark(tmp_path: Path) -> None:
    sandbox_state.write(SandboxState(IDENTITY, CAPTURED, "because"), str(tmp_path))
    path = tmp_path / f"{IDENTITY}.json"
    path.write_text(path.read_text().replace("{", '{"new": {"er": 1}, ', 1))
    assert sandbox_state.read(IDENTITY, str(tmp_path)) == SandboxState(IDENTITY, CAPTURED, "because")


def test_other_files_are_no_states(tmp_path: Path) -> None:
    for name in (".a.123", "b", "c.json", "..json", "d.json.lock", "ä.json"):
        Path(tmp_path, name).touch()
    assert sandbox_state.containers(str(tmp_path)) == ("c",)


def test_a_symbolic_link_is_not_followed(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("{}")
    Path(tmp_path, f"{IDENTITY}.json").symlink_to(other)
    with pytest.raises(SandboxStateError, match="can't be read"):
        sandbox_state.read(IDENTITY, str(tmp_path))
    sandbox_state.write(SandboxState(IDENTITY, CAPTURED, "because"), str(tmp_path))
    assert other.read_text() == "{}"


def test_what_can_not_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SandboxStateError, match="can't be written"):
        sandbox_state.write(SandboxState(IDENTITY, CAPTURED, ""), str(tmp_path / "file" / "under"))
