"""The agent's socket for the plugin: who may connect, how much is read, and for how long."""

from __future__ import annotations

import asyncio
import json
import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from istio_init.cni.plugin.agent_client import LONGEST_ANSWER, LONGEST_REQUEST, VERSION
from istio_init.errors import InitError, shown
from istio_init.kernel.host.logfile import make_directory
from istio_init.kernel.host.sockets import peer_uid

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

    from istio_init.log import Log

    Handler = Callable[[Mapping[str, Any]], Awaitable[Mapping[str, Any] | None]]

# Seconds that a connection may last: longer than the plugin's own deadline, since an ADD reports at its end.
LONGEST_CALL = 120.0
# Connections at once. A node starts at most a few hundred pods at a time.
MOST = 1024


class PluginServer:
    """Answers the plugin on a unix socket. `handlers` answer a request by what it asks for; None is no answer.

    `most` connections are open at one time.
    """

    def __init__(self, handlers: Mapping[str, Handler], log: Log, most: int = MOST) -> None:
        self._handlers, self._log, self._most, self._open = handlers, log, most, 0

    @asynccontextmanager
    async def serving(self, path: str) -> AsyncIterator[None]:
        """Serve at a path. The socket of a previous agent is replaced atomically.

        InitError where that is impossible.
        """
        new = f"{path}.{os.getpid()}"
        try:
            make_directory(os.path.dirname(path))
            _remove(new)
            server = await asyncio.start_unix_server(self._serve, new, limit=LONGEST_REQUEST, backlog=MOST)
            os.chmod(new, 0o600)
            os.rename(new, path)
        except OSError as error:
            raise InitError(
                f"--socket: {shown(path)}: {error.strerror or error}; name another path, or mount the host's directory"
            ) from error
        own = _identity(path)
        try:
            yield
        finally:
            # Unless a following agent has replaced it.
            if _identity(path) == own:
                _remove(path)
            # Not wait_closed(): from Python 3.12 on it waits for the calls of pods that start just now.
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        try:
            uid = peer_uid(writer.get_extra_info("socket"))
            if uid not in {0, os.geteuid()}:
                self._log.warn(f"the plugin's socket: refused a process of user {uid}")
            elif self._open <= self._most:
                async with asyncio.timeout(LONGEST_CALL):
                    await self._converse(reader, writer)
        except (OSError, TimeoutError, ValueError):
            pass  # the plugin has gone, is stuck, or sends a line that is too long
        finally:
            self._open -= 1
            writer.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while (line := await reader.readline()).endswith(b"\n"):
            answer = await self.answer(line)
            if answer is None:
                continue
            data = json.dumps({"version": VERSION, **answer}).encode()
            if len(data) > LONGEST_ANSWER:
                data = json.dumps(_error("the answer is too long", final=True)).encode()
            writer.write(data + b"\n")
            await writer.drain()

    async def answer(self, line: bytes) -> Mapping[str, Any] | None:
        """The answer to a line; None if there is none."""
        try:
            request = json.loads(line)
            version, ask = request["version"], request["ask"]
        except (ValueError, KeyError, TypeError, RecursionError):
            return _error("the request cannot be understood", final=True)
        if version != VERSION:
            return _error(f"version {shown(str(version))}: this agent has version {VERSION}")
        handler = self._handlers.get(ask) if isinstance(ask, str) else None
        if handler is None:
            return _error(f"ask: {shown(str(ask))}: use one of {', '.join(self._handlers)}", final=True)
        try:
            return await handler(request)
        except InitError as error:
            return _error(str(error))
        except Exception as error:  # noqa: BLE001 (one request must not end with a traceback, nor without an answer)
            self._log.error(f"internal error: {ask}: {type(error).__name__}: {shown(str(error), 200)[1:-1]}")
            return _error("internal error of the agent; see its log")


def _error(why: str, *, final: bool = False) -> dict[str, Any]:
    """An answer that is none; `final` where the same request will not be answered later either."""
    return {"version": VERSION, "error": why, "final": final}


def _identity(path: str) -> tuple[int, int]:
    try:
        status = os.stat(path)
    except OSError:
        return 0, 0
    return status.st_dev, status.st_ino


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
