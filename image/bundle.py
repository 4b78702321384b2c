"""The program's modules in one file, and the importer that loads them from it.

Finding, opening and reading thirty modules one by one takes as long as executing them (docs/speed.md). So the modules
that a start needs are read and executed in a few groups: the first one at once, each other one when the first of its
modules is imported.

The file begins with the code of this importer, in a block of its own that a launcher executes. The head follows: where
the groups are that a start may need, and the paths of modules in C. Then come those groups, each module that no start
needs as a group of its own, and the index of these. All of it is in the format of `marshal`, which can crash the
interpreter where the data are damaged or another version of Python wrote them, so every part has a digest that is
checked first.
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
    from collections.abc import Iterator
    from types import CodeType, ModuleType
    from typing import Any, TypeAlias

    # By name, whether the module is a package, and its code; None for one in C.
    Group: TypeAlias = dict[str, tuple[bool, CodeType | None]]
    # Offset from the end of the head, and number of bytes.
    Extent: TypeAlias = tuple[int, int]

IMPORTER_BYTES = 12288  # the size of the importer's block, digest included; marshal ignores the padding
# Of a part of the first group. For a larger one the C library would ask the kernel for memory, and give it back.
PART_BYTES = 65536
SIZE_BYTES = 8  # of the head's size, little endian
DIGEST_BYTES = 8

# The digest is keyed with Python's minor version, on which byte code depends: it also fails for another interpreter.
KEY = sys.hexversion >> 16


class Bundle:
    """A finder and loader of the modules in one file; it leaves other modules to the other finders."""

    def __init__(
        self, file: int, begin: int, extents: dict[str, Extent], index: Extent, extensions: dict[str, str]
    ) -> None:
        """An open file whose head ends at `begin`; for each module that a start may need, the extent of its group.

        `index` has those of the other modules; `extensions` are the paths of the modules in C that a start needs.
        """
        self._file, self._begin, self._extents, self._extensions = file, begin, extents, extensions
        self._index: Extent | None = index
        # The groups that have been read; a module that has been executed is without its code.
        self._ready: Group = {}

    def run(self, group: Group) -> None:
        """Import the modules of a group in their order, without the searches that an import makes for each."""
        self._ready.update(group)
        modules = sys.modules
        for name, (is_package, code) in group.items():
            if name in modules:
                continue
            if code is None:
                load_extension(
                    self._extension(name) if name in self._extensions else ModuleSpec(name, BuiltinImporter)  # type: ignore[arg-type]
                )
                continue
            parent, _, child = name.rpartition(".")
            if parent and parent not in modules:
                __import__(parent)
            module = modules[name] = type(sys)(name)
            module.__spec__ = spec = ModuleSpec(name, self)  # type: ignore[arg-type]
            module.__package__ = parent
            if is_package:
                module.__package__ = name
                module.__path__ = spec.submodule_search_locations = []
            # Before it is executed, for modules that import each other.
            self._ready[name] = is_package, None
            try:
                exec(code, module.__dict__)  # noqa: S102 (this is what an import is)
            except BaseException:
                self._ready[name] = is_package, code
                del modules[name]
                raise
            if parent:
                setattr(modules[parent], child, module)

    def _extension(self, name: str) -> ModuleSpec:
        from _frozen_importlib_external import ExtensionFileLoader

        origin = self._extensions[name]
        return ModuleSpec(name, ExtensionFileLoader(name, origin), origin=origin)

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """The module's spec, None where it is not in the file (importlib.abc.MetaPathFinder)."""
        if name in self._extensions:
            return self._extension(name)
        if name not in self._ready:
            if self._index and name not in self._extents and name.startswith("istio_init."):
                self._extents.update(self.read(self._index))
                self._index = None
            if name not in self._extents:
                return None
            self.run(self.read(self._extents[name]))
        return self._spec(name, is_package=self._ready[name][0])

    def read(self, extent: Extent) -> Any:  # noqa: ANN401 (a group, or the index)
        """The data of a part of the file."""
        offset, size = extent
        return unpacked(posix.pread(self._file, size, self._begin + offset))

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
    first, extents, index, extensions = unpacked(posix.read(file, min(size, posix.fstat(file).st_size)))
    paths = {name: base + path for name, path in extensions.items()}
    bundle = Bundle(file, IMPORTER_BYTES + SIZE_BYTES + size, extents, index, paths)
    sys.meta_path.insert(0, bundle)  # type: ignore[arg-type]
    try:
        for part in first:
            bundle.run(bundle.read(part))
    except (ImportError, MemoryError, OSError, SystemError) as error:
        why = str(error) or type(error).__name__
        sys.exit(f"can't start: {why}; raise the limits of memory and of open files (ulimit -n)")


def dump(importer: CodeType, groups: list[Group], starts: int, extensions: dict[str, str]) -> bytes:
    """The file for these groups, of which a start may need so many; it executes the first at once.

    `importer` is the code of this module.
    """
    content = b""
    first: list[Extent] = []
    indexes: tuple[dict[str, Extent], dict[str, Extent]] = {}, {}
    for part in divided(groups[0]):
        first.append((len(content), len(part)))
        content += part
    for number, group in enumerate(groups[1:], 1):
        part = packed(group)
        # Another group may need one of the modules in C without the rest of this one.
        extents = {name: (len(content), len(part)) for name, (_, code) in group.items() if code}
        indexes[number >= starts].update(extents)
        content += part
    index = packed(indexes[1])
    head = packed((first, indexes[0], (len(content), len(index)), extensions))
    begin = marshal.dumps(importer).ljust(IMPORTER_BYTES - DIGEST_BYTES, b"\0")
    if len(begin) > IMPORTER_BYTES - DIGEST_BYTES:
        raise ValueError(f"the importer has {len(begin)} bytes: its block has room for {IMPORTER_BYTES - DIGEST_BYTES}")
    size = len(head).to_bytes(SIZE_BYTES, "little")
    return _imp.source_hash(KEY, begin) + begin + size + head + content + index


def divided(group: Group) -> Iterator[bytes]:
    """A group in parts of at most PART_BYTES, or of one module, packed."""
    part: Group = {}
    for name, module in group.items():
        if part and len(packed({**part, name: module})) > PART_BYTES:
            yield packed(part)
            part = {}
        part[name] = module
    yield packed(part)
