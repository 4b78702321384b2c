"""The port for probes and Prometheus, which may be open to the network."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from istio_init.cni.agent import endpoint
from istio_init.cni.agent.endpoint import HttpEndpoint, Page

Test = Callable[[int], object]


def run(test: Test) -> None:
    """Run a test with the port of an endpoint that has one page."""

    async def served() -> None:
        async with HttpEndpoint({"/": lambda: Page(200, "well\n")}).serving("127.0.0.1:0") as port:
            await test(port)  # type: ignore[misc]

    asyncio.run(asyncio.wait_for(served(), 100))


async def get(port: int, request: bytes = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n") -> bytes:
    """What is answered until the connection ends."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    try:
        return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


def test_probes_are_answered_among_more_idle_connections_than_may_be_open() -> None:
    async def test(port: int) -> None:
        idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2 * endpoint.MOST)]
        for _ in range(3):
            assert (await get(port)).endswith(b"\r\n\r\nwell\n")
        # The oldest had to go.
        assert await idle[0][0].read() == b""
        for _, writer in idle:
            writer.close()

    run(test)


def test_idle_connections_end_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "PATIENCE", 0.05)

    async def test(port: int) -> None:
        assert await get(port, b"") == b""
        assert await get(port, b"GET / HTTP/1.1\r\n") == b""

    run(test)


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", b"405"),
        (b"GET /else HTTP/1.1\r\nHost: x\r\n\r\n", b"404"),
        (b"GET /%2e%2e/ HTTP/1.1\r\nHost: x\r\n\r\n", b"404"),
        (b"GET /?x=y HTTP/1.1\r\nHost: x\r\n\r\n", b"200"),
        (b"GET / HTTP/1.0\r\n\r\n", b"200"),
        (b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n", b"200"),
        (b"GET / HTTP/1.1\r\n\r\n", b""),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", b""),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * (1 << 20), b""),
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n", b""),
    ],
    ids=range(10),
)
def test_requests(request_: bytes, status: bytes) -> None:
    async def test(port: int) -> None:
        assert (await get(port, request_))[9:12] == status
        assert (await get(port)).endswith(b"well\n")

    run(test)
