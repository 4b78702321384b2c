"""Puts the image's root file system together, inside the build stage: assemble.py PROGRAM DEPENDENCIES ROOT.

The interpreter, those modules of its standard library that something imports, the program and its dependencies
as byte code, and the shared libraries that all of it needs, found by asking the dynamic linker. Nothing here names
an architecture or a Python version. Every time stamp is SOURCE_DATE_EPOCH, so that the same input makes the same
layer.
"""

from __future__ import annotations

import ctypes
import importlib.util
import modulefinder
import os
import py_compile
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
from types import CodeType
from typing import TYPE_CHECKING

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
import bundle  # noqa: E402 (they lie beside this file, where -I does not look)
import slim  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterable

HOME = Path("usr/lib/istio-init")
LIBRARY = HOME / "library.zip"
COMMANDS = ("istio-iptables", "istio-clean-iptables", "istio-init", "pilot-agent")

# dlopened by the program, so the dynamic linker can't tell.
OPENED = ("libip4tc.so.2", "libip6tc.so.2")

# Imported in branches that nothing here takes, and large, or with libraries of their own: hashlib has its digests
# without OpenSSL.
LEFT_OUT = (
    *("_bz2", "_hashlib", "_lzma", "_ssl", "asyncio", "concurrent", "curses", "distutils", "doctest"),
    *("lib2to3", "multiprocessing", "pdb", "pydoc", "readline", "sqlite3", "ssl", "test", "tkinter", "unittest"),
    *("webbrowser", "xml", "xmlrpc"),
)

# What a start imports, in the groups that it is read in (bundle.py): always, with a plan; for one with TPROXY or DNS
# capture; to print it; to carry it out; and to carry those out, with their routing. What a start needs and is not here
# costs it the index of all modules.
STARTS = (
    ("istio_init.cli.image_entry", "istio_init.planning.plan"),
    ("istio_init.model.extensions",),
    ("istio_init.planning.capture_tproxy", "istio_init.planning.capture_dns"),
    ("istio_init.formats",),
    ("istio_init.formats.nft",),
    ("istio_init.runner.dry_run", "istio_init.formats.iptables_save"),
    (
        "istio_init.runner.transaction",
        "istio_init.kernel.host.lock",
        "istio_init.kernel.probe.detection",
    ),
    ("istio_init.model.ownership",),
    ("istio_init.kernel.host.libc", "istio_init.kernel.xtables.encode_match"),
    ("istio_init.kernel.xtables.firewall",),
    ("istio_init.kernel.xtables.edit_table", "istio_init.kernel.xtables.libiptc"),
    ("istio_init.kernel.xtables.encode_extension",),
    ("istio_init.kernel.netlink.routing_messages",),
    ("istio_init.kernel.nft.expressions",),
    ("istio_init.kernel.nft.native",),
    ("istio_init.formats.nft.rare_match", "istio_init.kernel.nft.native_encode_rare"),
    ("istio_init.kernel.netlink.batch",),
    ("istio_init.kernel.nft.native_write",),
    ("istio_init.kernel.nft.compat",),
    ("istio_init.kernel.nft.compat_decode",),
    ("istio_init.kernel.host.resolv_conf",),
    # Long lists.
    ("istio_init.kernel.xtables.packed_run",),
    ("istio_init.kernel.xtables.replace_table",),
    ("istio_init.formats.nft.prefix_lengths",),
    ("istio_init.kernel.nft.set_intervals",),
    ("istio_init.kernel.nft.compat_run",),
)

# Whose docstrings are what --help says of the verbs.
WITH_HELP = ("istio_init/cli/app.py", "istio_init/cli/verbs/")

# What the importer calls the origin of a module that is in the interpreter.
BUILT_IN = "built-in"

# Looked up by name at run time.
CODECS = ("ascii", "idna", "latin_1", "raw_unicode_escape", "unicode_escape", "utf_8")

# What is not in LIBRARY: the interpreter looks for os.py, and imports encodings, before the launcher can name an
# archive; cni is the plugin.
STAY = frozenset({"os", "encodings", "cni"})

# Of the collections in pygments, which rich imports, what is imported at once. The rest colours sources.
PYGMENTS_KEPT = {"__init__", "_mapping", "default", "python", "special", "text"}

USERS = "root:x:0:0:root:/:/usr/sbin/nologin\nistio-proxy:x:1337:1337:istio-proxy:/:/usr/sbin/nologin\n"
GROUPS = "root:x:0:\nistio-proxy:x:1337:\n"


def unneeded(module: Path) -> bool:
    """Whether a module of a dependency, by its path below DEPENDENCIES, stays out."""
    collection = module.parts[:2] in {("pygments", "lexers"), ("pygments", "formatters"), ("pygments", "styles")}
    return module.name in {"__main__.py", "testing.py"} or (collection and module.stem not in PYGMENTS_KEPT)


def modules(tree: Path) -> list[Path]:
    """The modules of the program or of its dependencies that go in, by their paths below `tree`."""
    paths = (path.relative_to(tree) for path in sorted(tree.rglob("*.py")))
    return [path for path in paths if not unneeded(path)]


def dotted(module: Path) -> str:
    """The name by which a module is imported: a/b.py is a.b, and a/__init__.py is a."""
    parts = module.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(trees: list[Path], names: Iterable[str], without: tuple[str, ...] = LEFT_OUT) -> dict[str, Path]:
    """The modules that these modules of the trees import, directly or not, and themselves: the file of each by name."""
    library = sysconfig.get_path("stdlib")
    extensions = [path for path in sys.path if path.endswith("lib-dynload")]
    finder = modulefinder.ModuleFinder(path=[*map(str, trees), library, *extensions], excludes=list(without))
    for name in (*names, "os", "encodings.aliases", *(f"encodings.{codec}" for codec in CODECS)):
        finder.import_hook(name)
    files = ((name, getattr(module, "__file__", None)) for name, module in sorted(finder.modules.items()))
    return {name: Path(file) for name, file in files if file}


def is_library(file: Path) -> bool:
    """Whether a module is the standard library's."""
    return file.is_relative_to(sysconfig.get_path("stdlib"))


def below_library(file: Path) -> Path:
    """The path of a module of the standard library in that; those in C have a directory of their own in some."""
    below = file.relative_to(sysconfig.get_path("stdlib"))
    return below.relative_to("lib-dynload") if below.parts[0] == "lib-dynload" else below


def standard_library(trees: list[Path]) -> list[Path]:
    """The files of the standard library that the modules of the trees import, directly or not."""
    names = [dotted(module) for tree in trees for module in modules(tree)]
    return sorted({file for file in imported(trees, names).values() if is_library(file)})


def write_module(source: Path, target: Path, inside: Path) -> None:
    """A module as byte code, which Python takes without looking for a source; an extension module as it is.

    `inside` is the path that tracebacks name.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.suffix == ".py":
        unchecked = py_compile.PycInvalidationMode.UNCHECKED_HASH
        py_compile.compile(
            str(source), str(target.with_suffix(".pyc")), str(inside), doraise=True, invalidation_mode=unchecked
        )
    else:
        shutil.copyfile(source, target)


def started(program: Path, entries: tuple[str, ...]) -> list[str]:
    """All modules that importing these brings in, each behind those that it imports itself."""
    code = f"import sys; sys.path.insert(0, {str(program)!r}); import {', '.join(entries)}"
    empty, whole = (_imported("pass"), _imported(code))
    return [name for name in whole if name not in empty]


def _imported(code: str) -> list[str]:
    """What an interpreter imports that runs some code, in the order in which that is done with."""
    command = [sys.executable, "-I", "-S", "-B", "-X", "importtime", "-c", code]
    log = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    return [line.rpartition("|")[2].strip() for line in log.splitlines()[1:]]


def write_bundle(program: Path, root: Path) -> None:
    """The program's modules in one file, where the image has it, with the importer that reads it."""
    groups, extensions = grouped(program, modules(program), STARTS)
    write_groups(root / HOME / "istio_init.bundle", groups, len(STARTS), extensions)


def grouped(
    program: Path, modules: list[Path], starts: tuple[tuple[str, ...], ...]
) -> tuple[list[bundle.Group], dict[str, str]]:
    """The modules, by their paths below `program`, in the groups that they are read in.

    Those that a start imports are in groups, without what only readers want of them; the others have a group each.
    With them come the modules in C that a start imports, and the paths of those that are in files.
    """
    sources = {dotted(module): module for module in modules}
    groups: list[bundle.Group] = []
    extensions = {}
    for entries in starts:
        group: bundle.Group = {}
        for name in started(program, entries):
            if name in sources:
                module = sources.pop(name)
                group[name] = module.name == "__init__.py", slimmed(program, module)
            elif (origin := in_c(name)) and not any(name in before for before in groups):
                group[name] = False, None
                if origin != BUILT_IN:
                    extensions[name] = origin
        groups.append(group)
    for name, module in sources.items():
        level = 0 if str(module).startswith(WITH_HELP) else 2
        code = slim.without_future((program / module).read_bytes(), f"/{HOME / module}", level)
        groups.append({name: (module.name == "__init__.py", code)})
    return groups, extensions


def in_c(name: str) -> str:
    """Where the code of a module in C is: a path, or BUILT_IN; empty for one of Python."""
    if "." in name or name == "istio_init":
        return ""
    spec = importlib.util.find_spec(name)
    origin = str(spec.origin) if spec else ""
    return origin if origin == BUILT_IN or origin.endswith(".so") else ""


def write_groups(target: Path, groups: list[bundle.Group], starts: int, extensions: dict[str, str]) -> None:
    """The file that a start reads, bundle.py; `starts` is the number of groups that it may need."""
    importer = slim.compiled((HERE / "bundle.py").read_bytes(), f"/{HOME / 'bundle.py'}")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(bundle.dump(importer, groups, starts, extensions))


def write_data(program: Path, root: Path) -> None:
    """What modules of the program read beside themselves: the parts of a page."""
    for source in sorted((program / "istio_init" / "draw" / "html").iterdir()):
        if source.suffix in {".css", ".html", ".js"}:
            copy(source, root, str(HOME / source.relative_to(program)))


def slimmed(program: Path, module: Path) -> CodeType:
    """The code of a module, by its path below `program`, without what only readers want of it."""
    return slim.compiled((program / module).read_bytes(), f"/{HOME / module}")


def write_dependencies(dependencies: Path, root: Path) -> None:
    """The modules that pip has put there, with what they say of themselves, and their licences."""
    for module in modules(dependencies):
        write_module(dependencies / module, root / HOME / module, "/" / HOME / module)
    for path in sorted(dependencies.glob("*.dist-info/**/*")):
        if path.is_file() and (path.name == "METADATA" or "LICENSE" in path.name or "licenses" in path.parts):
            copy(path, root, str(HOME / path.relative_to(dependencies)))


def write_library(files: list[Path], root: Path) -> None:
    """Modules of the standard library, at their places."""
    for file in files:
        write_module(file, root / str(file).lstrip("/"), file)


def pack_modules(root: Path, stay: frozenset[str] = frozenset()) -> None:
    """Move modules that no start imports from their files into one compressed archive, which launcher.py names.

    What the interpreter itself looks for when it starts stays, extension modules do, and so do the top-level modules
    and packages of these names.
    """
    with zipfile.ZipFile(root / LIBRARY, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for home in (root / library_home(), root / HOME):
            for file in sorted(home.rglob("*.pyc")):
                name = file.relative_to(home)
                if name.parts[0].removesuffix(".pyc") in stay | STAY:
                    continue
                entry = zipfile.ZipInfo(str(name))  # of 1980, with no owner
                entry.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(entry, file.read_bytes())
                file.unlink()
    for directory in sorted((path for path in (root / "usr/lib").rglob("*") if path.is_dir()), reverse=True):
        if not any(directory.iterdir()):
            directory.rmdir()


def unpack_modules(root: Path) -> None:
    """Have all modules at their own places again."""
    with zipfile.ZipFile(root / LIBRARY) as archive:
        for name in archive.namelist():
            of_library = Path("/", library_home(), name).with_suffix(".py").exists()
            archive.extract(name, root / (library_home() if of_library else HOME))
    (root / LIBRARY).unlink()


def library_home() -> Path:
    """Where the image has the standard library, below its root."""
    return Path(sysconfig.get_path("stdlib").lstrip("/"))


def libraries(files: list[Path]) -> set[Path]:
    """The shared libraries that these ELF files need, the dynamic linker among them, by the paths it gives."""
    needed = set()
    for file in files:
        listing = subprocess.run(["ldd", file], check=True, capture_output=True, text=True).stdout
        needed |= {Path(word) for word in listing.split() if word.startswith("/")}
    return needed


def opened_libraries() -> list[Path]:
    """The libraries that the program opens by name: their names in the directories where they were found."""
    for name in OPENED:
        ctypes.CDLL(name)
    mapped = {Path(line.split()[-1]) for line in Path("/proc/self/maps").read_text().splitlines() if ".so" in line}
    return sorted(path.parent / name for name in OPENED for path in mapped if path.name.startswith(name))


def copy(source: Path, root: Path, name: str = "") -> None:
    """A file with its mode, to the same place below root, or to the one named."""
    target = root / (name or str(source).lstrip("/"))
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source.resolve(), target)
    target.chmod(0o755 if os.access(source, os.X_OK) else 0o644)


def write_commands(root: Path) -> None:
    """The launcher under each name that a pod may call it by."""
    directory = root / "usr/local/bin"
    directory.mkdir(parents=True)
    launcher = directory / COMMANDS[0]
    launcher.write_text("#!/usr/bin/python3 -ISXutf8\n" + slim.uncommented((HERE / "launcher.py").read_text()))
    launcher.chmod(0o755)
    for name in COMMANDS[1:]:
        (directory / name).symlink_to(COMMANDS[0])


def packages(files: set[Path]) -> set[str]:
    """The Debian packages that these files come from. dpkg knows some by the paths from before /usr was merged."""
    paths = {str(file.resolve()) for file in files}
    alternatives = {path: (path, path.removeprefix("/usr")) for path in paths}
    command = ["dpkg-query", "--search", *(each for pair in alternatives.values() for each in pair)]
    # It fails where it does not know one, as it does not one of most pairs.
    listing = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    owners = {
        path: names.partition(",")[0] for names, _, path in (line.partition(": ") for line in listing.splitlines())
    }
    for path, pair in sorted(alternatives.items()):
        if not owners.keys() & set(pair):
            raise SystemExit(f"{path}: belongs to no Debian package; BASE has to be Debian or made from it")
    return {owners[each] for pair in alternatives.values() for each in pair if each in owners}


def write_origins(root: Path, files: set[Path]) -> None:
    """What scanners and lawyers look for: the packages that the files come from, and their licences."""
    copy(Path("/etc/os-release"), root)
    for package in sorted(packages(files)):
        status = subprocess.run(["dpkg-query", "--status", package], check=True, capture_output=True, text=True).stdout
        name = package.partition(":")[0]
        entry = root / "var/lib/dpkg/status.d" / name
        entry.parent.mkdir(parents=True, exist_ok=True)
        entry.write_text(status)
        copy(Path("/usr/share/doc", name, "copyright"), root)
    copy(HERE.parent / "LICENSE", root, "usr/share/doc/istio-init/LICENSE")


def write_linker_cache(root: Path, shared: set[Path]) -> None:
    """The dynamic linker's cache; without it, it tries a dozen directories for every library."""
    directories = sorted({f"/{file.parent}".replace("//", "/") for file in shared})
    subprocess.run(["ldconfig", "-r", root, *directories], check=True)
    shutil.rmtree(root / "var/cache", ignore_errors=True)


def set_times(root: Path, epoch: int) -> None:
    """Give everything the same time stamp, directories after what is in them."""
    for path in sorted(root.rglob("*"), reverse=True):
        os.utime(path, (epoch, epoch), follow_symlinks=False)
    os.utime(root, (epoch, epoch))


def main(program: Path, dependencies: Path, root: Path) -> None:
    """Write the whole root file system."""
    python = Path(sys.executable).resolve()
    write_bundle(program, root)
    write_data(program, root)
    write_dependencies(dependencies, root)
    library = standard_library([program, dependencies])
    write_library(library, root)
    extensions = [file for file in library if file.suffix == ".so"]
    shared = {*opened_libraries(), *libraries([python, *extensions, *opened_libraries()])}
    for file in sorted(shared):
        copy(file, root)
    copy(python, root, "usr/bin/python3")
    write_commands(root)
    pack_modules(root)
    for directory in ("etc", "run", "proc", "sys", "dev"):
        (root / directory).mkdir(exist_ok=True)
    (root / "etc/passwd").write_text(USERS)
    (root / "etc/group").write_text(GROUPS)
    write_origins(root, {python, *shared, *library})
    write_linker_cache(root, shared)
    set_times(root, int(os.environ.get("SOURCE_DATE_EPOCH", "0")))


if __name__ == "__main__":
    main(*(Path(argument).resolve() for argument in sys.argv[1:]))
