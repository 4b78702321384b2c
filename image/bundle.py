"""The program's modules in one file, and the importer that loads them from it.

Finding, opening and reading thirty modules one by one takes as long as executing them (docs/speed.md). So the modules
that a start needs are read and executed in a few groups: the first one at once, each other one when the first of its
modules is imported.

The file begins with the code of this importer, in a block of its own that a launcher executes. The head follows: the
first group, the index, and the paths of modules in C. Then come the other groups; each module that no start needs is a
group of its own. All of it is in the format of `marshal`, which can crash the interpreter where the data are damaged
or another version of Python wrote them, so every part has a digest that is checked first.
"""

from __future__ import annotations

import _imp
import _signal
import marshal
import posix
import sys
from _frozen_importlib import BuiltinImporter, ModuleSpec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import CodeType, ModuleType
    from typing import Any, TypeAlias

    # By name, whether the module is a package, and its code; None for one in C.
    Group: TypeAlias = dict[str, tuple[bool, CodeType | None]]
    # Offset from the end of the head, and number of bytes.
    Extent: TypeAlias = tuple[int, int]

IMPORTER_BYTES = 12288  # the size of the importer's block, digest included; marshal ignores the padding
SIZE_BYTES = 8  # of the head's size, little endian
DIGEST_BYTES = 8

# The digest is keyed with Python's minor version, on which byte code depends: it also fails for another interpreter.
KEY = sys.hexversion >> 16


class Bundle:
    """A finder and loader of the modules in one file; it leaves other modules to the other finders."""

    def __init__(self, file: int, begin: int, extents: dict[str, Extent], extensions: dict[str, str]) -> None:
        """An open file whose head ends at `begin`; for each module the extent of its group.

        `extensions` are the paths of the modules in C that a start needs.
        """
        self._file, self._begin, self._extents, self._extensions = file, begin, extents, extensions
        # The groups that have been read; a module that has been executed is without its code.
        self._ready: Group = {}

    def run(self, group: Group) -> None:
        """Import the modules of a group in their order, without the searches that an import makes for each."""
        self._ready.update(group)
        for name, (is_package, code) in group.items():
            if name in sys.modules:
                continue
            if code is None:
                load_extension(
                    self._extension(name) if name in self._extensions else ModuleSpec(name, BuiltinImporter)  # type: ignore[arg-type]
                )
                continue
            module = type(sys)(name)
            parent, _, child = name.rpartition(".")
            if parent and parent not in sys.modules:
                __import__(parent)
            module.__package__ = name if is_package else parent
            module.__spec__ = spec = self._spec(name, is_package=is_package)
            if is_package:
                module.__path__ = spec.submodule_search_locations
            sys.modules[name] = module
            try:
                self.exec_module(module)
            except BaseException:
                del sys.modules[name]
                raise
            if parent:
                setattr(sys.modules[parent], child, module)

    def _extension(self, name: str) -> ModuleSpec:
        from _frozen_importlib_external import ExtensionFileLoader

        origin = self._extensions[name]
        return ModuleSpec(name, ExtensionFileLoader(name, origin), origin=origin)

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """The module's spec, None where it is not in the file (importlib.abc.MetaPathFinder)."""
        if name in self._extensions:
            return self._extension(name)
        if name not in self._ready:
            if name not in self._extents:
                return None
            offset, size = self._extents[name]
            group: Group = unpacked(posix.pread(self._file, size, self._begin + offset))
            self.run(group)
        return self._spec(name, is_package=self._ready[name][0])

    def _spec(self, name: str, *, is_package: bool) -> ModuleSpec:
        spec = ModuleSpec(name, self)  # type: ignore[arg-type]
        if is_package:
            spec.submodule_search_locations = []
        return spec

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """The module that was executed with its group; None, for a new one, where its group is being executed."""
        return sys.modules.get(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Execute the module's code, once (importlib.abc.Loader)."""
        is_package, code = self._ready[module.__name__]
        if code is None:
            return
        self._ready[module.__name__] = is_package, None
        try:
            exec(code, module.__dict__)  # noqa: S102 (this is what an import is)
        except BaseException:
            self._ready[module.__name__] = is_package, code
            raise


def load_extension(spec: ModuleSpec) -> ModuleType:
    """Import a module in C; Python's own import executes a thousand steps for it."""
    if spec.origin:
        module = _imp.create_dynamic(spec)
        _imp.exec_dynamic(module)
    else:
        module = _imp.create_builtin(spec)
        _imp.exec_builtin(module)
    module.__spec__, module.__loader__ = spec, spec.loader
    sys.modules[spec.name] = module
    return module


def packed(data: object) -> bytes:
    """A part of the file: the digest, then the data in the format of marshal."""
    content = marshal.dumps(data)
    return _imp.source_hash(KEY, content) + content


def unpacked(part: bytes) -> Any:  # noqa: ANN401 (whatever was packed)
    """The data of a part. SystemExit, with a line for the user, where the part is not as it was written."""
    content = memoryview(part)[DIGEST_BYTES:]  # no copy: the kernel would hand out and wipe as many pages again
    if _imp.source_hash(KEY, content) != part[:DIGEST_BYTES]:  # type: ignore[arg-type] # it takes any buffer
        sys.exit("istio_init.bundle: damaged, or built for another version of Python: install istio-init again")
    return marshal.loads(content)  # noqa: S302 (as it was written)


def install(file: int, base: str = "") -> None:
    """Import from an open file, which has been read up to its head, and import its first group at once.

    The paths of modules in C are relative to `base`.
    """
    # Nothing has begun that would have to be undone. As process 1 of a container, signals would not end it otherwise.
    for number in (_signal.SIGINT, _signal.SIGTERM):
        if _signal.getsignal(number) != _signal.SIG_IGN:
            _signal.signal(number, lambda number, _: posix._exit(128 + number))
    # The process ends before a collection would pay; one of the oldest generation takes a millisecond.
    (sys.modules.get("gc") or load_extension(ModuleSpec("gc", BuiltinImporter))).disable()  # type: ignore[arg-type]
    size = int.from_bytes(posix.read(file, SIZE_BYTES), "little")
    # A damaged size is no reason to allocate more memory than the file has bytes.
    first, extents, extensions = unpacked(posix.read(file, min(size, posix.fstat(file).st_size)))
    paths = {name: base + path for name, path in extensions.items()}
    bundle = Bundle(file, IMPORTER_BYTES + SIZE_BYTES + size, extents, paths)
    sys.meta_path.insert(0, bundle)  # type: ignore[arg-type]
    try:
        bundle.run(first)
    except (ImportError, MemoryError, OSError, SystemError) as error:
        why = str(error) or type(error).__name__
        sys.exit(f"can't start: {why}; raise the limits of memory and of open files (ulimit -n)")


def dump(importer: CodeType, groups: list[Group], extensions: dict[str, str]) -> bytes:
    """The file for these groups, of which the first is executed at once; `importer` is the code of this module."""
    extents, content = {}, b""
    for group in groups[1:]:
        part = packed(group)
        # Another group may need one of the modules in C without the rest of this one.
        extents.update({name: (len(content), len(part)) for name, (_, code) in group.items() if code})
        content += part
    head = packed((groups[0], extents, extensions))
    begin = marshal.dumps(importer).ljust(IMPORTER_BYTES - DIGEST_BYTES, b"\0")
    if len(begin) > IMPORTER_BYTES - DIGEST_BYTES:
        raise ValueError(f"the importer has {len(begin)} bytes: its block has room for {IMPORTER_BYTES - DIGEST_BYTES}")
    return _imp.source_hash(KEY, begin) + begin + len(head).to_bytes(SIZE_BYTES, "little") + head + content
