"""A start's modules from the wheel's one file: as Python's importer would have them, or left to it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from importlib.util import MAGIC_NUMBER
from pathlib import Path
from typing import Any

import pytest

import istio_init

PACKAGE = Path(istio_init.__file__).parent
ROOT = PACKAGE.parent
LISTED = Path(__file__).parent / "hot_path_modules.txt"
FILE = f"start.{sys.implementation.cache_tag}.bundle"

# What the scripts do before they import anything of ours.
SCRIPTS = {name: (ROOT / "scripts/console" / name).read_text() for name in ("istio-iptables", "istio-init-cni")}
LOADING = SCRIPTS["istio-iptables"].partition("from istio_init.")[0]
# All that a plain run imports, and what it prints with.
IMPORTING = """
import istio_init.start, istio_init.plans, istio_init.dry_run
import istio_init.commands, istio_init.kernel.lock, istio_init.kernel.detection, istio_init.kernel.iptables
import istio_init.kernel.extensions_rare, istio_init.kernel.resolver
"""
# Without the importer, for modules of ours: what is not in the file fails.
ALONE = """
class Refuses:
    def find_spec(self, name, path=None, target=None):
        if name.startswith("istio_init"):
            raise ImportError("asked for " + name)
sys.meta_path.insert(0, Refuses())
"""
# What a module is known by; an importer's own objects by their kind.
TELLING = """
import json
def told(module):
    spec = module.__spec__
    return [module.__file__, module.__cached__, module.__package__, getattr(module, "__path__", None), repr(module),
            type(module.__loader__).__name__, type(spec.loader).__name__, spec.loader_state, spec.name, spec.origin,
            spec.has_location, spec.cached, spec.parent, spec.submodule_search_locations,
            getattr(spec, "_initializing", None)]
print(json.dumps({name: told(module) for name, module in sys.modules.items() if name.startswith("istio_init")}))
"""
COUNTING = "print(sum(name.startswith('istio_init.') for name in sys.modules))"


def write(place: Path) -> None:
    """The scripts' files, as the wheel gets them."""
    program = [sys.executable, "-ISB", "-X", "no_debug_ranges", str(ROOT / "image/wheel.py")]
    subprocess.run([*program, str(place), str(place / "istio_init")], check=True)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("wheel")
    shutil.copytree(PACKAGE, place / "istio_init", ignore=shutil.ignore_patterns("__pycache__", "*.bundle"))
    write(place)
    return place


@pytest.fixture
def installed(original: Path, tmp_path: Path) -> Path:
    """The package as pip leaves it: everything written just now, the files for the scripts last."""
    place = tmp_path / "site-packages"
    shutil.copytree(original, place)
    for path in place.rglob("*.*"):
        os.utime(path)
    for path in place.rglob("*.bundle"):
        os.utime(path)
    return place


def run(place: Path, code: str, *flags: str, first: str = "") -> str:
    """What a program prints that has the package in this directory."""
    beginning = f"import sys; sys.path.insert(0, {str(place)!r})\n{first}\n"
    command = [sys.executable, "-I", "-B", *flags, "-c", beginning + code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def loaded(place: Path, *flags: str, first: str = "") -> int:
    """How many modules are there before any is asked for."""
    return int(run(place, LOADING + COUNTING, *flags, first=first))


def test_all_come_from_the_file(installed: Path) -> None:
    assert loaded(installed) > 10
    run(installed, LOADING + IMPORTING, first=ALONE)


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_ask_the_importer_for_nothing_of_ours(installed: Path, script: str) -> None:
    loading, begin, rest = SCRIPTS[script].partition("from istio_init.")
    run(installed, loading + begin + rest.partition("\n")[0], first=ALONE)


def test_modules_are_as_the_importer_has_them(installed: Path) -> None:
    ours: dict[str, Any] = json.loads(run(installed, LOADING + IMPORTING + TELLING))
    theirs: dict[str, Any] = json.loads(run(installed, IMPORTING + "import istio_init.preload" + TELLING))
    assert ours == theirs


def test_the_first_group_and_the_others_are_what_a_plain_run_imports(installed: Path) -> None:
    lines = [line.split(": ") for line in LISTED.read_text().splitlines() if line.startswith("istio_init")]
    imported = {name for name, scenarios in lines if "redirect" in scenarios.split()}
    code = f"{LOADING}{IMPORTING}print(*(name for name in sys.modules if name.startswith('istio_init')))"
    # The image's door, which pip's scripts do not go through.
    assert imported - {"istio_init.entry"} <= set(run(installed, code).split())


def test_same_sources_make_the_same_bytes(original: Path, tmp_path: Path) -> None:
    shutil.copytree(PACKAGE, tmp_path / "istio_init", ignore=shutil.ignore_patterns("__pycache__", "*.bundle"))
    write(tmp_path)
    assert (tmp_path / "istio_init" / FILE).read_bytes() == (original / "istio_init" / FILE).read_bytes()


@pytest.mark.parametrize("name", ["values", "kernel/lock", "preload"])
def test_a_source_that_changed_is_what_counts(installed: Path, name: str) -> None:
    source = installed / "istio_init" / f"{name}.py"
    source.write_text(source.read_text() + "\nCHANGED = True\n")
    module = f"istio_init.{name.replace('/', '.')}"
    assert run(installed, f"{LOADING}{IMPORTING}import {module}; print({module}.CHANGED)") == "True\n"


@pytest.mark.parametrize("seconds", [0.2, -3600])
def test_so_is_one_of_the_same_size(installed: Path, seconds: float) -> None:
    source = installed / "istio_init" / "values.py"
    written = (source.parent / FILE).stat().st_mtime + seconds
    source.write_text(source.read_text().replace("65535", "65534"))
    os.utime(source, (written, written))
    assert loaded(installed) == 0


def test_a_group_that_is_read_later_is_looked_at_then(installed: Path) -> None:
    source = installed / "istio_init" / "kernel" / "lock.py"
    os.utime(source, (0, 0))
    assert loaded(installed) > 10
    assert "commands" in run(installed, f"{LOADING}{IMPORTING}print(istio_init.commands.__file__)")


def without(place: Path) -> None:
    place.unlink()


def truncated(place: Path) -> None:
    place.write_bytes(place.read_bytes()[:-1000])


def garbage(place: Path) -> None:
    place.write_bytes(MAGIC_NUMBER + os.urandom(12) + b"\xff" * 1000)


def empty(place: Path) -> None:
    place.write_bytes(b"")


def of_another_python(place: Path) -> None:
    place.write_bytes(b"\0\0\r\n" + place.read_bytes()[4:])


def no_source(place: Path) -> None:
    (place.parent / "preload.py").unlink()


@pytest.mark.parametrize("harm", [without, truncated, garbage, empty, of_another_python, no_source])
def test_without_a_file_that_fits_all_is_left_to_the_importer(installed: Path, harm: Callable[[Path], None]) -> None:
    harm(installed / "istio_init" / FILE)
    assert loaded(installed) == 0
    assert run(installed, f"{LOADING}{IMPORTING}print(istio_init.start.main.__doc__ is None)") == "False\n"


def test_what_an_optimization_leaves_out_is_for_the_importer_to_say(installed: Path) -> None:
    assert loaded(installed, "-O") == 0


def test_a_package_that_is_found_before_is_what_counts(installed: Path, tmp_path: Path) -> None:
    shutil.copytree(installed, tmp_path / "first", ignore=shutil.ignore_patterns("*.bundle"))
    before = f"sys.path.insert(0, {str(tmp_path / 'first')!r})"
    assert loaded(installed, first=before) == 0


def break_(place: Path, name: str) -> int:
    """Have a module fail, but not where the file is written; the number of the line."""
    source = place / "istio_init" / f"{name}.py"
    source.write_text(source.read_text() + "\n\nimport sys\n\nif hasattr(sys, 'broken'):\n    raise OSError('no')\n")
    write(place)
    return len(source.read_text().splitlines())


def test_a_module_that_fails_is_not_left_half_done(installed: Path) -> None:
    break_(installed, "values")
    code = """
try:
    import istio_init.start
except OSError as error:
    print(error, "istio_init.values" in sys.modules, "istio_init.options" in sys.modules)
"""
    assert run(installed, LOADING + code, first="sys.broken = True") == "no False False\n"


def test_a_module_of_a_later_group_that_fails_says_so_itself(installed: Path) -> None:
    number = break_(installed, "plans")
    code = """
import traceback
for _ in range(2):
    try:
        import istio_init.plans
    except OSError as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        print(last.filename, last.lineno, last.line, "istio_init.plans" in sys.modules)
"""
    line = f"{installed}/istio_init/plans.py {number} raise OSError('no') False\n"
    assert run(installed, LOADING + code, first="sys.broken = True") == line * 2


LOOKING = {
    "inspect.getsource(istio_init.start.parse)[:9]": "def parse",
    "inspect.getsource(istio_init.plans)[:3]": '"""',
    "inspect.getsourcefile(istio_init.commands.apply)": "{}/istio_init/commands.py",
    "importlib.resources.files('istio_init').joinpath('page', 'document.py').is_file()": "True",
    "importlib.resources.files('istio_init.kernel').joinpath('lock.py').is_file()": "True",
    "importlib.reload(istio_init.start).parse.__doc__[:3]": "The",
    "importlib.reload(istio_init.plans).__doc__ is None": "False",
    "importlib.util.find_spec('istio_init.save').origin": "{}/istio_init/save.py",
    "'istio_init.cni' in [each.name for each in pkgutil.iter_modules(istio_init.__path__, 'istio_init.')]": "True",
    "pkgutil.resolve_name('istio_init.values:owners').__module__": "istio_init.values",
    "pkgutil.get_data('istio_init', 'py.typed')": "b''",
    "istio_init.__version__": istio_init.__version__,
    "istio_init.Options.__name__": "Options",
    "linecache.getline(istio_init.values.__file__, 1)[:3]": '"""',
    "sys.modules['istio_init.preload'] is sys.meta_path[0]": "True",
}


@pytest.mark.parametrize("expression", LOOKING)
def test_whoever_looks_finds_what_is_there(installed: Path, expression: str) -> None:
    importing = "import importlib.resources, importlib.util, inspect, linecache, pkgutil\n"
    importing += "import istio_init.start, istio_init.plans, istio_init.commands\n"
    said = run(installed, f"{LOADING}{importing}print({expression})")
    assert said == LOOKING[expression].format(installed) + "\n"


def test_help_is_the_same(installed: Path) -> None:
    code = "from istio_init.start import main\nmain(['--help'], {})"
    assert run(installed, LOADING + code) == run(installed, code)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    directory = tmp_path_factory.mktemp("built")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(directory)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    [path] = directory.iterdir()
    assert path.name.endswith("-py3-none-any.whl")
    return zipfile.ZipFile(path)


def test_the_wheel_has_the_files_behind_the_sources(wheel: zipfile.ZipFile, original: Path) -> None:
    names = wheel.namelist()
    assert wheel.read(f"istio_init/{FILE}") == (original / "istio_init" / FILE).read_bytes()
    assert max(names.index(name) for name in names if name.endswith(".py")) < names.index(f"istio_init/{FILE}")
