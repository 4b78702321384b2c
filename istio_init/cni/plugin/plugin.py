"""The CNI plugin `istio-init-cni`: ADD, DEL, CHECK, GC, STATUS and VERSION over the commands that all others use.

Standard output has only the result; what libraries print goes to standard error.
"""

from __future__ import annotations

import posix as os  # the C half of os; the other half costs a start a millisecond
import sys
import time

from istio_init.cni.plugin import protocol
from istio_init.cni.plugin.call import PluginCall
from istio_init.cni.plugin.fast_json import encode
from istio_init.cni.plugin.log import PodLog
from istio_init.cni.plugin.protocol import (
    FAULT,
    VERSIONS,
    PluginError,
    Request,
)
from istio_init.cni.plugin.settings import settings
from istio_init.errors import InitError, Interrupted
from istio_init.runner import access

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from collections.abc import Callable, Mapping
    from typing import Any, NoReturn
else:
    # The C half of signal; the module around it imports enum.
    import _signal

PROGRAM = "istio-init-cni"

# The deadline of a command. Longer than --wait and all attempts at the Kubernetes API together.
SECONDS = 100.0


def version(request: Request) -> str:
    """The supported versions of the specification."""
    return encode({"cniVersion": request.version, "supportedVersions": list(VERSIONS)})


# Each imports its own module alone: a call is one command.
def _add(call: PluginCall) -> str:
    from istio_init.cni.plugin.add import add

    return add(call)


def _delete(call: PluginCall) -> str:
    from istio_init.cni.plugin.removal import delete

    return delete(call)


def _check(call: PluginCall) -> str:
    from istio_init.cni.plugin.check import check

    return check(call)


def _collect(call: PluginCall) -> str:
    from istio_init.cni.plugin.removal import collect

    return collect(call)


def _status(call: PluginCall) -> str:
    from istio_init.cni.plugin.check import status

    return status(call)


VERBS: dict[str, Callable[[PluginCall], str]] = {
    "ADD": _add,
    "DEL": _delete,
    "CHECK": _check,
    "GC": _collect,
    "STATUS": _status,
}


class Deadline:
    """Within its `with`, a command that takes too long is interrupted, and what it has changed is undone.

    A runtime waits for minutes, and starts no other pod's sandbox in the meantime.
    """

    def __init__(self, command: str) -> None:
        self.command = command
        self._before: Any = None

    def __enter__(self) -> None:
        self._before = _signal.signal(_signal.SIGALRM, self._expire)
        _signal.setitimer(_signal.ITIMER_REAL, SECONDS)

    def __exit__(self, *_: object) -> None:
        _signal.setitimer(_signal.ITIMER_REAL, 0)
        _signal.signal(_signal.SIGALRM, self._before)

    def _expire(self, *_: object) -> None:
        what = f"{self.command} took longer than {SECONDS:g} s and was interrupted"
        raise Interrupted(f"{what}; see the node's load, and the length of the pod's lists")


def answer(environ: Mapping[str, str], data: bytes) -> tuple[int, str]:
    """The exit code, and what belongs on standard output."""
    call, begin = None, time.monotonic()
    try:
        request = protocol.read(environ, data)
        if request.command == "VERSION":
            return 0, version(request) + "\n"
        call = PluginCall(request, settings(request.members))
        with Deadline(request.command), access.pinned(request.netns):
            result = VERBS[request.command](call)
    except InitError as error:
        failure = error
    except Exception as error:  # noqa: BLE001 (a runtime wants an answer, whatever is wrong)
        where = error.__traceback__
        while where is not None and where.tb_next is not None:
            where = where.tb_next
        place = f"{where.tb_frame.f_code.co_filename}:{where.tb_lineno}" if where else ""
        failure = PluginError(
            FAULT, f"internal error: {type(error).__name__}: {' '.join(str(error).split())[:300]}", place
        )
    else:
        call.report(0, begin)
        return 0, f"{result}\n" if result else ""
    (call.log if call else PodLog("info", "", 0)).error(protocol.message_of(failure))
    if call:
        call.report(protocol.code_of(failure), begin)
    return 1, protocol.error_text(failure, protocol.spoken(data))


def main() -> NoReturn:
    """The console script `istio-init-cni`."""
    from istio_init.kernel.host.process import environment, reserve_standard_descriptors

    reserve_standard_descriptors()
    if sys.argv[1:]:
        sys.exit(_about(sys.argv[1]))
    # Anything that is printed from here on must not mix with the result.
    result = os.dup(1)
    os.dup2(2, 1)
    code, text = answer(environment(), _input())
    if not _printed(result, text):
        code = 1
    os._exit(code)  # noqa: SLF001 (that is its name; nothing needs tearing down)


def _printed(descriptor: int, text: str) -> bool:
    """Write all of the text to standard output, open as `descriptor`; where that fails, say why and return False."""
    data = text.encode()
    try:
        while data:
            data = data[os.write(descriptor, data) :]
    except OSError as error:
        _complain(f"standard output: can't be written: {os.strerror(error.errno or 0)}")
        return False
    return True


def _complain(text: str) -> None:
    """One line on standard error, if that can be written."""
    try:
        os.write(2, f"{PROGRAM}: {text}\n".encode())
    except OSError:
        pass  # there is nowhere left to say it


ABOUT = """\
istio-init-cni {version}: the CNI plugin that captures the traffic of pods.

Examples:
  # Add it to this node's network
  istio-init cni install
  # Ask it as a container runtime does
  CNI_COMMAND=VERSION istio-init-cni < /dev/null

A container runtime calls it, with CNI_COMMAND and further variables in its
environment and the network's configuration on standard input, which
istio-init-cni(8) describes. It speaks these versions of the CNI specification:
{versions}.

Options:
  --version
          Print the version.
  -h, --help, --help-all
          Show this message.
"""


def _about(flag: str) -> int:
    """Answer a person who calls the plugin with an argument; returns the exit code."""
    from istio_init import __version__
    from istio_init.errors import shown

    if flag in {"-h", "--help", "--help-all"}:
        text = ABOUT.format(version=__version__, versions=", ".join(VERSIONS))
    elif flag == "--version":
        text = f"istio-init {__version__}\n"
    else:
        _complain(f"{shown(flag)}: takes no arguments but --help and --version")
        return 255
    return 0 if _printed(1, text) else 1


def _input() -> bytes:
    """Standard input to its end, or to where it is longer than any configuration."""
    data = b""
    try:
        while len(data) <= protocol.LONGEST_INPUT and (chunk := os.read(0, 1 << 20)):
            data += chunk
    except OSError:
        pass  # what is missing is no JSON
    return data
