"""A Firewall over python-iptables: slower than kernel/xtables/firewall.py, and an independent check of it.

It uses libxtables, iptables' own library, which parses and prints what matches and targets say; none of our
structs come in. python-iptables can't serve both families in one process, and it may end the one it is in. So
each call is answered by a Python of its own, in the calling thread's network namespace. It takes no xtables
lock: the caller holds it.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import importlib.util
import os
import pickle
import subprocess
import sys

from istio_init.errors import InitError, KernelError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from istio_init.model.rules import Family, Ruleset, Table, TableName

# The child imports what its parent could: the same path, without what site.py would run on the way.
_START = (
    "import sys; sys.path[:] = sys.argv[1:]; from istio_init.kernel.xtables.python_iptables import answer; answer()"
)

# As root, no program from PATH is run.
_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"

# The libraries by the names that python-iptables asks for.
_SONAMES = {"xtables": "libxtables.so.12", "ip4tc": "libip4tc.so.2", "ip6tc": "libip6tc.so.2"}


class PythonIptables:
    """kernel.Firewall over python-iptables, for the calling thread's network namespace."""

    def __init__(self) -> None:
        """InitError where the package is not installed."""
        if importlib.util.find_spec("iptc") is None:
            raise InitError(
                "--iptables-engine python-iptables: the package is not installed: "
                "pip install 'python-iptables>=1.2.0' (it has no wheel: that takes a C compiler and Python's "
                "headers), or leave the flag out"
            )

    def read(self, family: Family, expecting: Ruleset | None = None) -> Ruleset:
        """As Firewall.read."""
        ruleset: Ruleset = _ask("read", family, expecting)
        return ruleset

    def replace(self, family: Family, desired: Table) -> None:
        """As Firewall.replace."""
        _ask("replace", family, desired)

    def remove(self, family: Family, name: TableName, unsigned: Table | None = None) -> None:
        """As Firewall.remove."""
        _ask("remove", family, name, unsigned)


def _ask(verb: str, family: Family, *arguments: object) -> Any:
    """What a child returns from one verb; what it raises is raised here. KernelError where it dies."""
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", _START, *sys.path],
        input=pickle.dumps((verb, (family, *arguments))),
        capture_output=True,
        env={**os.environ, "PATH": _PATH},
        check=False,
    )
    if done.returncode or not done.stdout:
        last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise KernelError(
            f"{family}: python-iptables ended its process with {done.returncode}: {last}; "
            "run again with --iptables-engine libiptc"
        )
    result = pickle.loads(done.stdout)  # noqa: S301 (from this program's child)
    if isinstance(result, InitError):
        raise result
    return result


def answer() -> None:
    """The child: a pickled question comes on standard input, the pickled answer leaves on standard output."""
    # What python-iptables and libxtables print is not the answer: it goes to standard error.
    out = os.dup(1)
    os.dup2(2, 1)
    verb, arguments = pickle.load(sys.stdin.buffer)  # noqa: S301 (from this program's parent)
    result: object
    try:
        _prepare()
        from istio_init.kernel.xtables.python_iptables_child import Engine

        result = getattr(Engine(), verb)(*arguments)
    except InitError as error:
        result = error
    with os.fdopen(out, "wb") as file:
        pickle.dump(result, file)
    # python-iptables would clean up first; the end of the process does that as well.
    os._exit(0)


def _prepare() -> None:
    """Import python-iptables without the ldconfig, gcc and ld that it runs to find libraries by itself.

    KernelError where it can't be imported.
    """
    try:
        ctypes.CDLL(_SONAMES["xtables"])
        with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
            library = next(line.split(maxsplit=5)[5].strip() for line in maps if "/libxtables.so." in line)
        os.environ.setdefault("XTABLES_LIBDIR", f"{os.path.dirname(library)}/xtables")
        ctypes.util.find_library = _soname
        importlib.import_module("iptc")
    except Exception as error:
        raise KernelError(f"python-iptables can't be imported: {error}; use --iptables-engine libiptc") from error
    from istio_init.kernel.xtables.python_iptables_options import mend

    mend()


def _soname(name: str) -> str | None:
    return _SONAMES.get(name)
