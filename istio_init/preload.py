"""What every start imports, from one file and without what an import does besides.

To find a module, its byte code, and whether that is up to date, Python's importer takes two thousand steps of Python
for each, more than most of these modules take themselves. So the wheel brings their byte code once more, as the image
has it: in one file, without what only readers want of it, in groups that are read and run at once (image/wheel.py
writes it). pip's scripts open it, run this module out of it, and call load().

It counts as long as it is what the sources say. Where one of them was changed, is gone, or anything else is not as the
installer left it, that is left to the importer. Modules are what the importer would have made, for all who look at
them, but for docstrings, annotations and assertions.

The image has its own way (image/bundle.py): nobody edits sources there.
"""

from __future__ import annotations

import _imp
import marshal
import posix  # the C half of os
import sys

# The importer itself, there from the beginning.
from _frozen_importlib import BuiltinImporter, ModuleSpec
from _frozen_importlib_external import ExtensionFileLoader, SourceFileLoader

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import CodeType, ModuleType
    from typing import TypeAlias

    # A module: its name, its source and its byte code by their paths from `home`, its directory if it is a package, the
    # source's size, and its code, which is None for one in C.
    Entry: TypeAlias = tuple[str, str, str, str, int, CodeType | None]
    Group: TypeAlias = tuple[Entry, ...]
    # The file's path from `home`, this module, the first group, what `_waiting` and what `_extensions` begin with.
    Contents: TypeAlias = tuple[str, Entry, Group, dict[str, bytes], dict[str, str]]

# Seconds. An installer writes all files of a package within a minute, and this one behind the sources; some write
# several at a time. Nobody edits one before the installer has ended.
_BEFORE, _BEHIND = 60, 0.1

# Where the package is, with a slash, and when the file was written.
home = ""
written = 0.0
# By name, the group of a module that has not been run, as marshal has it, and the path of a module in C.
_waiting: dict[str, bytes] = {}
_extensions: dict[str, str] = {}


class module(type(sys)):  # type: ignore[misc]  # noqa: N801 (as errors name its kind)
    """A module that is looked up as other objects are: image/bundle.py has the reasons. Packages are ordinary ones."""

    __getattribute__ = object.__getattribute__


def load(this: ModuleType, place: str, contents: Contents) -> None:
    """Import the first group, and have the others imported when they are asked for, if the sources are unchanged.

    `this` is this module, which the caller made; `place` the entry of sys.path where the file was found.
    ImportError, and nothing done, where all is to be left to the importer.
    """
    # A class would take longer to make than ten modules to find.
    global home, written
    file, own, first, others, extensions = contents
    home, written = place + "/", posix.stat(f"{place}/{file}").st_mtime
    if sys.flags.optimize or not _is_found_first(place) or not _are_current((own, *first)):
        raise ImportError
    _waiting.update(others)
    _extensions.update(extensions)
    sys.meta_path.insert(0, this)
    _set_up(this, own)
    _run(first)


def find_spec(name: str, path: object = None, target: object = None) -> ModuleSpec | None:  # noqa: ARG001 (asked with)
    """The module's spec, None where the importer is to find it (importlib.abc.MetaPathFinder)."""
    if name in _extensions:
        return _extension(name)
    if name not in _waiting or name in sys.modules:
        return None
    group: Group = marshal.loads(_waiting[name])  # noqa: S302 (the package's own file)
    if not _are_current(group):
        for entry in group:
            _waiting.pop(entry[0], None)
        return None
    [source] = [entry[1] for entry in group if entry[0] == name]
    spec = ModuleSpec(name, sys.modules[__name__], origin=home + source, loader_state=group)  # type: ignore[arg-type]
    spec.has_location = True
    return spec


def create_module(spec: ModuleSpec) -> ModuleType:
    """The module, which is run with its group (importlib.abc.Loader)."""
    _run(spec.loader_state)
    return sys.modules[spec.name]


def exec_module(made: ModuleType) -> None:
    """Nothing is left to be done but to say who will load it the next time (importlib.abc.Loader)."""
    spec = made.__spec__
    if spec is not None:
        spec.loader, spec.loader_state = made.__loader__, None  # type: ignore[assignment]


def _is_found_first(place: str) -> bool:
    """Whether the importer would look for the package there, and not before."""
    for each in sys.path:
        if posix.access(f"{each}/istio_init", posix.F_OK):
            return each == place
    return False


def _are_current(group: Group) -> bool:
    """Whether all sources are what the group was made of."""
    try:
        for _, source, _, _, size, code in group:
            if code is None:
                continue
            there = posix.stat(home + source)
            if there.st_size != size or not -_BEFORE <= there.st_mtime - written <= _BEHIND:
                return False
    except OSError:
        return False
    return True


def _run(group: Group) -> None:
    """Import all of a group, in its order."""
    for entry in group:
        name, directory, code = entry[0], entry[3], entry[5]
        if name in sys.modules:
            continue
        if code is None:
            _load_in_c(name)
            continue
        # A package may have a __getattr__ of its own, of which other objects know nothing.
        made = type(sys)(name) if directory else module(name)
        _set_up(made, entry)
        try:
            exec(code, made.__dict__)  # noqa: S102 (this is what an import is)
        except BaseException:
            del sys.modules[name]
            raise
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, made)


def _load_in_c(name: str) -> None:
    """Import a module in C, if this interpreter has it where the one had it that wrote the file."""
    if name in sys.builtin_module_names:
        spec = ModuleSpec(name, BuiltinImporter, origin="built-in")  # type: ignore[arg-type]
        create, execute = _imp.create_builtin, _imp.exec_builtin
    elif name in _extensions and (found := _extension(name)):
        spec, create, execute = found, _imp.create_dynamic, _imp.exec_dynamic
    else:
        return
    sys.modules[name] = made = create(spec)
    made.__spec__, made.__loader__, made.__package__ = spec, spec.loader, ""
    spec._initializing = False  # type: ignore[attr-defined] # noqa: SLF001 (as in _set_up)
    if spec.has_location:
        made.__file__ = spec.origin
    try:
        execute(made)
    except BaseException:
        del sys.modules[name]
        raise


def _extension(name: str) -> ModuleSpec | None:
    """The spec of a module in C that is in a file; None, for once and all, where that is not this interpreter's."""
    path = _extensions.pop(name)
    if path.rpartition("/")[0] not in sys.path or not posix.access(path, posix.R_OK):
        return None
    spec = ModuleSpec(name, ExtensionFileLoader(name, path), origin=path)
    spec.has_location = True
    return spec


def _set_up(made: ModuleType, entry: Entry) -> None:
    """Have a module be what the importer would make of it, before it is run."""
    name, source, cached, directory, _, code = entry
    made.__file__ = path = home + source
    made.__cached__ = home + cached  # type: ignore[attr-defined]
    made.__loader__ = SourceFileLoader(name, path)
    made.__spec__ = spec = ModuleSpec(name, made.__loader__, origin=path, is_package=directory != "")
    spec.has_location = True
    # Each later import asks for this, and makes an error that nobody sees where it is missing.
    spec._initializing = False  # type: ignore[attr-defined] # noqa: SLF001 (it has no other name)
    if directory:
        made.__path__ = spec.submodule_search_locations = [home + directory]
        made.__package__ = name
    else:
        made.__package__ = name.rpartition(".")[0]
    _imp._fix_co_filename(code, path)  # type: ignore[attr-defined]  # noqa: SLF001 (that is its name)
    sys.modules[name] = made
