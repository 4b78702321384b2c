"""The state of each sandbox that the plugin was called for, one JSON file each, which other commands read.

ADD writes it, DEL removes it, GC removes those whose sandbox is gone. `istio-init cni repair` reads them. They lie in
/run: after a reboot there are no sandboxes, and no marks.
"""

from __future__ import annotations

import posix as os  # the C half of os; the other half costs a start a millisecond

from istio_init.cni.plugin.fast_json import decode, encode
from istio_init.errors import InitError, shown
from istio_init.kernel.host.logfile import make_directory
from istio_init.options.json_data import from_data, to_data
from istio_init.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from istio_init.options.table import Options

DIRECTORY = "/run/istio-init/cni"
SUFFIX = ".json"

CAPTURED = "captured"
PASSED = "passed through"

# Longer than any runtime's identities (64), and short enough for a file name.
LONGEST_IDENTITY = 200
# Bytes. All annotations of a pod have at most 256 KiB, and as data they grow less than eightfold.
LONGEST = 2 << 20


class SandboxStateError(InitError):
    """A sandbox's state can't be read or written: the file and the reason."""


class SandboxState(Record):
    """The decision for one sandbox, and the outcome.

    `options` are those that the rules were made from (without the namespace), None if the pod was passed through;
    `inode` identifies the network namespace under any path. `attachments` are the CNI networks that called the
    plugin, each with the interface's name.
    """

    container: str
    decision: str
    why: str
    pod: str = ""
    namespace: str = ""
    uid: str = ""
    netns: str = ""
    inode: int = 0
    options: Options | None = None
    attachments: tuple[tuple[str, str], ...] = ()
    time: str = ""

    @property
    def captured(self) -> bool:
        """Whether the sandbox has Istio rules made by the plugin."""
        return self.decision == CAPTURED


def is_identity(text: str) -> bool:
    """Whether a text is a container's identity as the CNI spec has it, and so can be a file's name."""
    return (
        0 < len(text) <= LONGEST_IDENTITY
        and text.isascii()
        and text[0].isalnum()
        and all(sign.isalnum() or sign in "_.-" for sign in text)
    )


def write(state: SandboxState, directory: str = DIRECTORY) -> None:
    """Replace a sandbox's state atomically; raises SandboxStateError where that fails."""
    path = _path(state.container, directory)
    new = f"{directory}/.{state.container}.{os.getpid()}"
    text = encode(_to_members(state))
    try:
        make_directory(directory)
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            data = f"{text}\n".encode()
            while data:
                data = data[os.write(descriptor, data) :]
        finally:
            os.close(descriptor)
        os.rename(new, path)
    except OSError as error:
        raise _error(path, "written", error) from error


def read(container: str, directory: str = DIRECTORY) -> SandboxState | None:
    """The state of a sandbox, or None where it has none; SandboxStateError where it can't be read."""
    path = _path(container, directory)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise _error(path, "read", error) from error
    try:
        data = b""
        while len(data) <= LONGEST and (chunk := os.read(descriptor, LONGEST)):
            data += chunk
    except OSError as error:
        raise _error(path, "read", error) from error
    finally:
        os.close(descriptor)
    return _parsed(data, container, path)


def remove(container: str, directory: str = DIRECTORY) -> None:
    """Delete a sandbox's state, if it has one; SandboxStateError if that fails."""
    path = _path(container, directory)
    try:
        os.unlink(path)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise _error(path, "removed", error) from error


def containers(directory: str = DIRECTORY) -> tuple[str, ...]:
    """The sorted identities of all sandboxes with a state; raises SandboxStateError if the directory can't be read."""
    try:
        names = os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return ()
    except OSError as error:
        raise _error(directory, "read", error) from error
    identities = (name.removesuffix(SUFFIX) for name in names if name.endswith(SUFFIX))
    return tuple(sorted(name for name in identities if is_identity(name)))


def _parsed(data: bytes, container: str, path: str) -> SandboxState:
    try:
        value = decode(data.decode())
        return _from_members({**value, "container": container})
    except (ValueError, TypeError) as error:
        raise SandboxStateError(f"{path}: not a sandbox's state: {error}; remove it if its sandbox is gone") from error


def _to_members(state: SandboxState) -> dict[str, Any]:
    members: dict[str, Any] = {field: getattr(state, field) for field in state.__match_args__}
    members["options"] = None if state.options is None else to_data(state.options)
    return members


def _from_members(value: dict[str, Any]) -> SandboxState:
    """The state in a JSON object; keys of other releases are ignored."""
    members = {field: value[field] for field in SandboxState.__match_args__ if field in value}
    for field, content in members.items():
        kind = {"inode": int, "options": dict | None, "attachments": list}.get(field, str)
        if not isinstance(content, kind):
            raise TypeError(f"{field}: {shown(str(content))}: a value of the wrong type")
    options = members.get("options")
    members["options"] = None if options is None else from_data(options)
    members["attachments"] = tuple((str(network), str(name)) for network, name in members.get("attachments", []))
    return SandboxState(**members)


def _path(container: str, directory: str) -> str:
    if not is_identity(container):
        raise SandboxStateError(f"{shown(container)}: not a container's identity")
    return f"{directory}/{container}{SUFFIX}"


def _error(path: str, done: str, error: OSError) -> SandboxStateError:
    return SandboxStateError(f"{path}: the sandbox's state can't be {done}: {error.strerror}")
