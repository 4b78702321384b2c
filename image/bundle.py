"""The program's modules in one file, and the importer that takes them from there.

Looking for thirty modules, opening and reading them one by one, and having each of them imported, takes a start as
long as executing them does (docs/speed.md). So what a start needs is read and run in a few groups: the first at
once, another when the first of its modules is asked for.

The file begins with this importer's code, in a block of its own, which a launcher runs. Then come the size of the
head, and the head: the first group, the index and the paths of modules in C; then the other groups, and each module
that is in none, read when it is asked for. All of it is as `marshal` has it.
"""

from __future__ import annotations

import _imp
import marshal
import posix
import sys
from _frozen_importlib import BuiltinImporter, ModuleSpec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import CodeType, ModuleType
    from typing import TypeAlias

    # By name, whether the module is a package, and its code; None for one in C.
    Group: TypeAlias = dict[str, tuple[bool, CodeType | None]]
    # Offset from the end of the head, and bytes.
    Extent: TypeAlias = tuple[int, int]

IMPORTER_BYTES = 8192  # of the block that the importer is in; marshal does not mind what is behind it
SIZE_BYTES = 8  # of the head's size, little endian


class Module(type(sys)):  # type: ignore[misc]
    """A module that is looked up as other objects are.

    `from module import name` asks each module for a `__path__`, to see whether it is a package; of an ordinary one that
    has none it makes two errors that nobody sees, and with two hundred such lines that shows. Packages are ordinary
    modules: they may have a `__getattr__` of their own, of which other objects know nothing.
    """

    __getattribute__ = object.__getattribute__


class Bundle:
    """A finder and loader of the modules in one file; other modules are found as ever."""

    def __init__(self, file: int, begin: int, places: dict[str, Extent], extensions: dict[str, str]) -> None:
        """An open file whose head ends at `begin`; for each module the place of the group that it is in.

        `extensions` are the paths of modules in C that a start needs.
        """
        self._file, self._begin, self._places, self._extensions = file, begin, places, extensions
        # What has been read; without its code once it runs.
        self._ready: Group = {}

    def run(self, group: Group) -> None:
        """Import all of a group, in its order, without what an import has to look at for each."""
        self._ready.update(group)
        for name, (is_package, code) in group.items():
            if name in sys.modules:
                continue
            if code is None:
                in_c(self._extension(name) if name in self._extensions else ModuleSpec(name, BuiltinImporter))  # type: ignore[arg-type]
                continue
            module = type(sys)(name) if is_package else Module(name)
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
            if name not in self._places:
                return None
            offset, size = self._places[name]
            group: Group = marshal.loads(posix.pread(self._file, size, self._begin + offset))  # noqa: S302 (the image's own file)
            self.run(group)
        return self._spec(name, is_package=self._ready[name][0])

    def _spec(self, name: str, *, is_package: bool) -> ModuleSpec:
        spec = ModuleSpec(name, self)  # type: ignore[arg-type]
        # Each later import asks for this, and makes an error that nobody sees where it is missing.
        spec._initializing = False  # type: ignore[attr-defined]
        if is_package:
            spec.submodule_search_locations = []
        return spec

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """The module that has been run with its group; None, for a new one, where this is asked for meanwhile."""
        return sys.modules.get(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Run the module's code, if that has not been done (importlib.abc.Loader)."""
        is_package, code = self._ready[module.__name__]
        if code is None:
            return
        self._ready[module.__name__] = is_package, None
        try:
            exec(code, module.__dict__)  # noqa: S102 (this is what an import is)
        except BaseException:
            self._ready[module.__name__] = is_package, code
            raise


def in_c(spec: ModuleSpec) -> ModuleType:
    """Import a module in C: of these, too, an import takes a thousand steps of Python."""
    if spec.origin:
        module = _imp.create_dynamic(spec)
        _imp.exec_dynamic(module)
    else:
        module = _imp.create_builtin(spec)
        _imp.exec_builtin(module)
    module.__spec__, module.__loader__ = spec, spec.loader
    spec._initializing = False  # type: ignore[attr-defined] # as in Bundle._spec
    sys.modules[spec.name] = module
    return module


def install(file: int, base: str = "") -> None:
    """Have what is in an open file, read up to its head, imported from there, and its first group at once.

    The paths of modules in C begin behind `base`.
    """
    # The process is over before a collection would pay; one of the oldest generation takes a millisecond.
    (sys.modules.get("gc") or in_c(ModuleSpec("gc", BuiltinImporter))).disable()  # type: ignore[arg-type]
    size = int.from_bytes(posix.read(file, SIZE_BYTES), "little")
    first, places, extensions = marshal.loads(posix.read(file, size))  # noqa: S302 (the image's own file)
    paths = {name: base + path for name, path in extensions.items()}
    bundle = Bundle(file, IMPORTER_BYTES + SIZE_BYTES + size, places, paths)
    sys.meta_path.insert(0, bundle)  # type: ignore[arg-type]
    bundle.run(first)


def dump(importer: CodeType, groups: list[Group], extensions: dict[str, str]) -> bytes:
    """The file for these groups, the first of them to be run at once; `importer` is this module."""
    places, content = {}, b""
    for group in groups[1:]:
        packed = marshal.dumps(group)
        # Of a group's modules in C others may be without the rest of it.
        places.update({name: (len(content), len(packed)) for name, (_, code) in group.items() if code})
        content += packed
    head = marshal.dumps((groups[0], places, extensions))
    begin = marshal.dumps(importer).ljust(IMPORTER_BYTES, b"\0")
    if len(begin) > IMPORTER_BYTES:
        raise ValueError(f"the importer has {len(begin)} bytes: launchers read {IMPORTER_BYTES}")
    return begin + len(head).to_bytes(SIZE_BYTES, "little") + head + content
