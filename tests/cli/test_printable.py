"""Names of pods, and what a node's programs say, on their way to a terminal."""

from __future__ import annotations

import pytest

from istio_init.cli.verbs import cni_repair, ebpf
from istio_init.cni.node.cri import Sandbox
from istio_init.cni.node.repair import DRIFTED, Finding
from istio_init.inspect.socket_capture import SocketInspection
from istio_init.model.socket_capture import SocketCapture

HOSTILE = "\x1b[2J[/]\r\nforged\tline \u202e"
POD = Sandbox(HOSTILE, HOSTILE, HOSTILE, HOSTILE, ready=True, annotations={HOSTILE: HOSTILE})


def printable(text: str) -> bool:
    return all(line.isprintable() for line in text.split("\n")) and "\nforged" not in text


def test_pods_in_lines_and_in_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    actual = [Finding(POD, DRIFTED, HOSTILE, differences=(HOSTILE,))]
    assert all(map(str.isprintable, cni_repair.text(actual)))
    cni_repair._print(actual)
    assert printable(capsys.readouterr().out)


def test_what_is_wrong_with_capture_by_ebpf(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    inspection = SocketInspection(SocketCapture(()), "drifted", (HOSTILE,), {})
    monkeypatch.setattr(ebpf, "_inspect", lambda *_: inspection)
    for verb in (ebpf.check, ebpf.plan, ebpf.show):
        verb(None, None, "text")  # type: ignore[arg-type]
        assert printable(capsys.readouterr().out)
