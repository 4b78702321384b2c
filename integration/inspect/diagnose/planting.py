"""A pod with a sidecar and an app, in which a cause is planted, and what `diagnose` says of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from integration.kit.asking import Answer, ask
from integration.kit.endpoints import User
from integration.kit.pod import APP, PROXY, Pod
from integration.kit.residents import resident

USUAL = "-p 15001 -z 15006 -u 1337 -m REDIRECT -i '*' -x '' -b '*' -d 15090,15021,15020"
# A sidecar's ports, without and with an admin interface, which does not answer here.
CAPTURING = "15001 15006 15021"
SIDECAR = "15000 15001 15006 15021 15090"
DNS = "--redirect-dns --dns-servers 10.99.0.1,fd99::1"
FAULT = 3


def diagnose(pod: Pod, *words: str) -> Answer:
    return ask(pod.namespace, "diagnose", "--netns", pod.namespace.path, *words)


@contextlib.contextmanager
def running(
    pod: Pod, user: User | None = None, tcp: str = SIDECAR, udp: str = "15053", flags: str = ""
) -> Iterator[None]:
    """A sidecar and an app in the pod; with TPROXY among the flags, the sidecar is as that needs it."""
    tproxy = "TPROXY" in flags
    user = user or (User(0, 1337) if tproxy else PROXY)
    with (
        resident(pod.namespace, "envoy", user, tcp=tcp, udp=udp, transparent=tproxy),
        resident(pod.namespace, "app", APP, tcp="8080"),
    ):
        yield


def names(answer: Answer, *expected: str) -> None:
    """Hold that the answer is a fault, on one screen, and has these words."""
    lines = answer.output.splitlines()
    assert answer.code == FAULT, answer
    assert lines[0].startswith("FAULT: ")
    assert len(lines) <= 24, answer.output
    assert max(map(len, lines)) <= 80, answer.output
    text = " ".join(answer.output.split())
    for each in expected:
        assert each in text, (each, answer.output)
