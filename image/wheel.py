"""Writes what the wheel's scripts start from: wheel.py PROGRAM TARGET.

For each of them the byte code of what it imports, in one file, by the interpreter that this runs in and for those that
read the same byte code. The file is what Python has for a module without a source, so that Python itself says whether
it fits. It runs istio_init/preload.py, which is in it, and hands the rest to that. The same sources and the same
interpreter make the same bytes, if it is one that has imported nothing else.
"""

from __future__ import annotations

import importlib.util
import marshal
import sys
from pathlib import Path
from types import CodeType

sys.path.insert(0, str(Path(__file__).parent))
import assemble

PRELOAD = "istio_init.preload"
# By the name that a script asks for, what it imports, in the groups that it is read in: first what always is.
FILES = {
    "start": (("istio_init.start",), *assemble.STARTS[1:]),
    "plugin": (("istio_init.cni.plugin",), *assemble.STARTS[1:]),
}
# What a script runs in its own name space, where `place` is the entry of sys.path that it found the file in.
STARTER = """
preload = type(sys)("istio_init.preload")
exec("CODE", preload.__dict__)
preload.load(preload, place, "CONTENTS")
"""


def source(program: Path, name: str) -> Path:
    """The path of a module's source, below `program`."""
    place = Path(*name.split("."))
    return place / "__init__.py" if (program / place).is_dir() else place.with_suffix(".py")


def entry(program: Path, name: str, code: CodeType | None) -> tuple[str, str, str, str, int, CodeType | None]:
    """A module as preload.Entry has it."""
    if code is None:
        return name, "", "", "", 0, None
    path = source(program, name)
    directory = str(path.parent) if path.name == "__init__.py" else ""
    cached = importlib.util.cache_from_source(str(path), optimization="")
    return name, str(path), cached, directory, (program / path).stat().st_size, code


def in_file(program: Path, starts: tuple[tuple[str, ...], ...], name: str) -> CodeType:
    """The code of a file for a script that imports these: STARTER, with the rest as what it calls by names."""
    entries = tuple(each for group in starts for each in group)
    wanted = [source(program, each) for each in assemble.started(program, entries) if each.startswith("istio_init")]
    groups, extensions = assemble.grouped(program, wanted, starts)
    first, *others = [tuple(entry(program, each, code) for each, (_, code) in group.items()) for group in groups]
    waiting = {}
    for group in others:
        waiting.update(dict.fromkeys((each[0] for each in group if each[-1]), marshal.dumps(group)))
    own = entry(program, PRELOAD, assemble.slimmed(program, source(program, PRELOAD)))
    known = {"CODE": own[-1], "CONTENTS": (name, own, first, waiting, extensions)}
    starter = compile(STARTER, name, "exec")
    return starter.replace(co_consts=tuple(known.get(each, each) for each in starter.co_consts))


def main(program: Path, target: Path) -> None:
    """Write the files to a directory."""
    for name, starts in FILES.items():
        file = f"{name}.{sys.implementation.cache_tag}.bundle"
        code = in_file(program, starts, f"istio_init/{file}")
        # As Python's importer has a module without a source; nothing of the source is to be compared.
        (target / file).write_bytes(importlib.util.MAGIC_NUMBER + bytes(12) + marshal.dumps(code))


if __name__ == "__main__":
    main(*(Path(argument).resolve() for argument in sys.argv[1:]))
