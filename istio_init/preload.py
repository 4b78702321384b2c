"""What every start imports, from the modules' byte code and without what an import does besides.

To find a module, its byte code, and whether that is up to date, Python's importer takes two thousand steps of Python
for each, more than most of these modules take themselves. Where all is as pip leaves it, a few will do. Where anything
is not, that module and those behind it are left to the importer, which says what is wrong, or compiles.

The image has its own way (image/bundle.py).
"""

from __future__ import annotations

import _imp
import marshal
import posix  # the C half of os
import sys

# The importer itself, there from the beginning.
from _frozen_importlib import ModuleSpec, module_from_spec
from _frozen_importlib_external import MAGIC_NUMBER, SourceFileLoader

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import CodeType

# Each behind those that it imports. A test holds that a plain run imports these, in this order.
MODULES = (
    *("errors", "kernel", "record", "routing", "kernel.netlink", "netfilter", "kernel.rtnetlink", "backends"),
    *("values", "options", "log", "run", "start", "capture", "compare", "changes", "commands", "kernel.clib", "plans"),
    *("kernel.lock", "kernel.nfnetlink", "kernel.extensions", "kernel.header", "kernel.ports", "kernel.xtables"),
    *("kernel.tables", "kernel.detection", "kernel.libiptc", "kernel.runs", "kernel.iptables"),
)
_PACKAGES = {"kernel"}

# PEP 552: what byte code begins with is a magic number, flags, and its source's time and size, or a hash of it.
_HEAD_BYTES = 16
_BY_TIME, _UNCHECKED = 0, 1


def load() -> None:
    """Import MODULES, up to the first whose byte code is not there or not up to date."""
    if sys.flags.optimize or sys.pycache_prefix:
        return  # the byte code is elsewhere
    package, directory = __name__.rpartition(".")[0], __file__.rpartition("/")[0]
    for name in MODULES:
        whole = f"{package}.{name}"
        if whole not in sys.modules and not _run(whole, f"{directory}/{name.replace('.', '/')}", name in _PACKAGES):
            return


def _run(name: str, place: str, is_package: bool) -> bool:  # noqa: FBT001 (it has no default)
    """Import one module, whose source or directory is at `place`; False, and nothing done, where it has to be left."""
    directory, _, stem = (place, "", "__init__") if is_package else place.rpartition("/")
    source, cached = f"{directory}/{stem}.py", f"{directory}/__pycache__/{stem}.{sys.implementation.cache_tag}.pyc"
    code = byte_code(source, cached)
    if code is None:
        return False
    spec = ModuleSpec(name, SourceFileLoader(name, source), origin=source, is_package=is_package)
    spec.has_location, spec.cached = True, cached
    if spec.submodule_search_locations is not None:
        spec.submodule_search_locations.append(place)
    module = module_from_spec(spec)
    sys.modules[name] = module
    try:
        exec(code, module.__dict__)  # noqa: S102 (this is what an import is)
    except BaseException:
        del sys.modules[name]
        raise
    parent, _, child = name.rpartition(".")
    setattr(sys.modules[parent], child, module)
    return True


def byte_code(source: str, cached: str) -> CodeType | None:
    """The code of a source from the file where it is kept; None unless Python's importer would take it from there."""
    try:
        file = posix.open(cached, posix.O_RDONLY | posix.O_CLOEXEC)
        try:
            data = posix.read(file, posix.fstat(file).st_size)
        finally:
            posix.close(file)
        if data[:4] != MAGIC_NUMBER or not _is_current(data[4:_HEAD_BYTES], source):
            return None
    except OSError:
        return None
    code: CodeType = marshal.loads(data[_HEAD_BYTES:])  # noqa: S302 (what the importer would do)
    _imp._fix_co_filename(code, source)  # type: ignore[attr-defined]  # noqa: SLF001 (that is its name)
    return code


def _is_current(head: bytes, source: str) -> bool:
    flags, stamp = int.from_bytes(head[:4], "little"), head[4:]
    if flags != _BY_TIME:
        return flags == _UNCHECKED
    there = posix.stat(source)
    # Both modulo 2^32, as they are written.
    return stamp == b"".join([(int(n) & 0xFFFFFFFF).to_bytes(4, "little") for n in (there.st_mtime, there.st_size)])
