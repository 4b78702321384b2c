"""The list-and-watch of a node's pods against an API server that lies."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable

import pytest

from istio_init.cni.agent import watch as watch_module
from istio_init.cni.agent.credentials import ApiCredentials
from istio_init.cni.agent.kubernetes import KubernetesApi
from istio_init.cni.agent.pods import NodePod, PodStore, from_object
from istio_init.cni.agent.watch import Backoff, PodWatch
from istio_init.log import Log
from tests.kit.lying_api import Answer, Handler, LyingApi, Request, pod, pod_list


class Recorder(Log):
    """A log that keeps its lines."""

    def __init__(self) -> None:
        super().__init__("none")
        self.lines: list[str] = []

    def _write(self, level: str, message: str) -> None:
        self.lines.append(f"{level} {message}")


class Watched:
    """A watch that runs against a server, with what it knows and logs."""

    def __init__(self, server: LyingApi, patience: float) -> None:
        self.server, self.log = server, Recorder()
        self.changes: list[tuple[str, str]] = []
        self.store = PodStore(self._note)
        api = KubernetesApi(ApiCredentials(server.url, {"token": "t"}, {}), patience)
        self.watch = PodWatch(api, "node-1", self.store, self.log, Backoff(0.001, 0.02))
        self.failures: list[int] = []
        self.watch.failed = self.failures.append

    def _note(self, new: NodePod | None, old: NodePod | None) -> None:
        self.changes.append((new.name if new else "", old.name if old else ""))

    @property
    def names(self) -> list[str]:
        """The known pods."""
        return sorted(each.name for each in self.store)


@contextlib.asynccontextmanager
async def watching(*handlers: Handler, patience: float = 5.0) -> AsyncIterator[Watched]:
    async with LyingApi(*handlers).serving() as server:
        watched = Watched(server, patience)
        task = asyncio.create_task(watched.watch.run())
        try:
            yield watched
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 (what is waited for has no event)
            await asyncio.sleep(0.005)


def lists(version: int, *pods: dict[str, object]) -> Handler:
    async def handler(_request: Request, answer: Answer) -> None:
        await answer.json(pod_list(version, *pods))

    return handler


def refuses(status: int, headers: str = "") -> Handler:
    async def handler(_request: Request, answer: Answer) -> None:
        await answer.refuse(status, "no\nway", headers)

    return handler


def says(data: bytes) -> Handler:
    async def handler(_request: Request, answer: Answer) -> None:
        await answer.raw(data)

    return handler


def events(*changes: tuple[str, dict[str, object]], then: str = "stay") -> Handler:
    """A watch with these events, which then stays open, ends, or is cut off."""

    async def handler(request: Request, answer: Answer) -> None:
        assert request.watches, request.query
        await answer.begin()
        for kind, result in changes:
            await answer.event(kind, result)
        match then:
            case "stay":
                await asyncio.sleep(3600)
            case "end":
                await answer.end()
            case "cut":
                await answer.raw(b"ff\r\n{")

    return handler


async def silence(_request: Request, _answer: Answer) -> None:
    await asyncio.sleep(3600)


def bookmark(version: int) -> tuple[str, dict[str, object]]:
    return "BOOKMARK", {"kind": "Pod", "metadata": {"resourceVersion": str(version)}}


STAY = events()


def run(test: Callable[[], object]) -> None:
    asyncio.run(asyncio.wait_for(test(), 100))  # type: ignore[arg-type]


def test_a_list_and_the_changes_after_it() -> None:
    async def test() -> None:
        changes = events(("ADDED", pod("b", 11)), ("MODIFIED", pod("a", 12)), ("DELETED", pod("b", 13)), bookmark(20))
        async with watching(lists(10, pod("a", 5)), changes) as watched:
            await until(lambda: watched.store.version == "20")
            assert watched.names == ["a"]
            assert watched.changes == [("a", ""), ("b", ""), ("a", "a"), ("", "b")]
            listed, watch = watched.server.requests
        assert listed.path == watch.path == "/api/v1/pods"
        assert listed.query == {"fieldSelector": "spec.nodeName=node-1", "resourceVersion": "0"}
        assert watch.query.items() >= {"resourceVersion": "10", "allowWatchBookmarks": "true"}.items()
        assert 300 <= int(watch.query["timeoutSeconds"]) <= 600
        assert watch.headers["authorization"] == "Bearer t"
        assert watched.watch.synced.is_set()
        assert watched.failures == []

    run(test)


@pytest.mark.parametrize("then", ["end", "cut"])
def test_a_watch_that_ends_goes_on_from_the_last_version(then: str) -> None:
    async def test() -> None:
        first = events(("ADDED", pod("b", 11)), bookmark(15), then=then)
        second = events(("ADDED", pod("c", 16)))
        async with watching(lists(10, pod("a", 5)), first, second) as watched:
            await until(lambda: watched.names == ["a", "b", "c"])
            assert [each.query.get("resourceVersion") for each in watched.server.requests] == ["0", "10", "15"]

    run(test)


def gone_event() -> tuple[str, dict[str, object]]:
    return "ERROR", {"kind": "Status", "code": 410, "message": "too old resource version"}


@pytest.mark.parametrize("how", ["status", "event"])
def test_after_410_everything_is_listed_anew_and_what_is_gone_is_noticed(how: str) -> None:
    async def test() -> None:
        gone = refuses(410) if how == "status" else events(gone_event(), then="end")
        async with watching(lists(10, pod("a", 5), pod("b", 6)), gone, lists(30, pod("b", 6)), STAY) as watched:
            await until(lambda: watched.names == ["b"] and len(watched.server.requests) == 4)
            versions = [each.query.get("resourceVersion") for each in watched.server.requests]
            assert versions == ["0", "10", None, "30"]
            assert watched.changes == [("a", ""), ("b", ""), ("", "a")]

    run(test)


@pytest.mark.parametrize(
    "lie",
    [
        refuses(500),
        refuses(429, "Retry-After: 0\r\n"),
        refuses(503, "Retry-After: Wed, 21 Oct 2026 07:28:00 GMT\r\n"),
        refuses(403),
        says(b""),
        says(b"SSH-2.0-OpenSSH_9.2\r\n"),
        says(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"),
        says(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>"),
        says(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"),
        says(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]"),
        says(b'HTTP/1.1 200 OK\r\nContent-Length: 49\r\n\r\n{"metadata":{"resourceVersion":"1"},"items":[{}]}'),
        says(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"),
        says(b"HTTP/1.1 200 OK\r\nX: " + b"x" * (1 << 20)),
        says(b"HTTP/1.1 200 OK\r\nContent-Length: 900000\r\n\r\n" + b"[" * 900000),
        silence,
    ],
    ids=range(15),
)
def test_a_list_that_fails_is_asked_for_again(lie: Handler) -> None:
    # Lists take four times as long at most.
    patience = 0.5 if lie is silence else 60.0

    async def test() -> None:
        async with watching(lie, lie, lists(10, pod("a", 5)), STAY, patience=patience) as watched:
            await until(lambda: watched.names == ["a"])
            assert len(watched.failures) == 2
            # Said once, in one line, and that it is over.
            assert [line.split()[0] for line in watched.log.lines] == ["warn", "info"]
            assert all(line.isprintable() for line in watched.log.lines)

    run(test)


@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b"[]",
        b'{"type": "ADDED"}',
        b'{"type": "ADDED", "object": {"metadata": 7}}',
        b'{"type": "ERROR", "object": []}',
        b'{"type": "BOOKMARK", "object": {}}',
        b"\xff\xfe",
        b"{" * 100_000,
    ],
    ids=range(8),
)
def test_an_event_that_is_none_is_no_end(line: bytes) -> None:
    async def lie(_request: Request, answer: Answer) -> None:
        await answer.begin()
        await answer.piece(line + b"\n")
        await asyncio.sleep(3600)

    async def test() -> None:
        async with watching(lists(10, pod("a", 5)), lie, lists(12, pod("a", 5), pod("b", 11)), STAY) as watched:
            await until(lambda: watched.names == ["a", "b"])

    run(test)


def test_a_pod_that_cannot_be_understood_is_known_with_the_reason() -> None:
    strange = pod("strange", 6)
    strange["spec"]["containers"] = [{"name": "istio-proxy", "env": [{"name": "INVALID_DROP", "value": 7}]}]

    async def test() -> None:
        async with watching(lists(10, strange, pod("a", 7)), STAY) as watched:
            await until(lambda: watched.names == ["a", "strange"])
            actual = watched.store.get("default", "strange")
            assert actual is not None
            assert actual.description is None
            assert "env INVALID_DROP: '7': not a string" in actual.why

    run(test)


def test_a_server_that_ends_each_watch_at_once_is_not_asked_in_a_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    # However slow this machine is.
    monkeypatch.setattr(watch_module, "TOO_SHORT", 60)

    def pause(_self: Backoff, least: float = 0.0) -> float:
        pauses.append(least)
        return 0.01

    monkeypatch.setattr(Backoff, "pause", pause)

    async def test() -> None:
        async with watching(lists(10), *[events(then="end")] * 5, STAY) as watched:
            await until(lambda: len(watched.server.requests) == 7)
            assert len(pauses) == 5

    run(test)


def test_the_server_is_asked_again_after_what_it_says() -> None:
    backoff = Backoff(1, 8)
    assert 5 <= backoff.pause(5) <= 6
    pauses = [backoff.pause() for _ in range(6)]
    assert all(limit / 2 <= pause <= limit for pause, limit in zip(pauses, (2, 4, 8, 8, 8, 8), strict=True)), pauses
    assert len(set(pauses)) > 1
    backoff.reset()
    assert 0.5 <= backoff.pause() <= 1
    # Nobody makes the agent sleep for a day.
    assert backoff.pause(86400) < 10


def test_a_slow_server_is_waited_for() -> None:
    async def slow(_request: Request, answer: Answer) -> None:
        data = json.dumps(pod_list(10, pod("a", 5))).encode()
        await answer.raw(f"HTTP/1.1 200 OK\r\nContent-Length: {len(data)}\r\n\r\n".encode())
        for begin in range(0, len(data), 64):
            await asyncio.sleep(0.05)
            await answer.raw(data[begin : begin + 64])

    async def test() -> None:
        async with watching(slow, STAY, patience=1.0) as watched:
            await until(lambda: watched.names == ["a"])
            assert watched.failures == []

    run(test)


@pytest.mark.parametrize("jump", [-1e9, 1e9])
def test_a_clock_that_jumps_changes_nothing(monkeypatch: pytest.MonkeyPatch, jump: float) -> None:
    async def test() -> None:
        async def later(_request: Request, answer: Answer) -> None:
            await answer.begin()
            monkeypatch.setattr(time, "time", lambda now=time.time: now() + jump)
            await asyncio.sleep(0.1)
            await answer.event("ADDED", pod("b", 11))
            await asyncio.sleep(3600)

        async with watching(lists(10, pod("a", 5)), later) as watched:
            await until(lambda: watched.names == ["a", "b"])
            assert watched.failures == []

    run(test)


def test_thousands_of_pods_are_kept_small() -> None:
    many = [pod(f"pod-{number}", number, env="y" * 8000) for number in range(1, 3001)]

    async def test() -> None:
        async with watching(lists(4000, *many), events(*[("MODIFIED", each) for each in many])) as watched:
            await until(lambda: len(watched.store) == 3000)
            del many[1:]
            tracemalloc.start()
            before = tracemalloc.get_traced_memory()[0]
            kept = [from_object(pod(f"p{number}", number, env="y" * 8000)) for number in range(1000)]
            size = (tracemalloc.get_traced_memory()[0] - before) / len(kept)
            tracemalloc.stop()
            # In bytes; the object has 9 KB.
            assert size < 4500

    run(test)


def test_an_old_event_of_a_name_does_not_remove_its_next_pod() -> None:
    store = PodStore()
    store.replace([from_object(pod("a", 5, uid="old"))], "5")
    store.apply("ADDED", from_object(pod("a", 7, uid="new")))
    store.apply("DELETED", from_object(pod("a", 6, uid="old")))
    assert [each.uid for each in store] == ["new"]


def test_a_static_pod_has_two_uids() -> None:
    mirror = from_object(pod("a", 5, annotations={"kubernetes.io/config.mirror": "hash"}))
    assert mirror.has_uid("hash")
    assert mirror.has_uid("uid-a")
    assert mirror.has_uid("")
    assert not mirror.has_uid("other")
