"""A start's modules from their byte code: as Python's importer would have them, or left to it."""

from __future__ import annotations

import compileall
import json
import py_compile
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import istio_init
from istio_init.preload import MODULES

PACKAGE = Path(istio_init.__file__).parent
LISTED = Path(__file__).parent / "hot_path_modules.txt"

# What a module is known by; an importer's own objects by their kind.
TELLING = """
import json, sys
sys.path.insert(0, sys.argv[1])
{first}
import istio_init.kernel.iptables, istio_init.commands, istio_init.kernel.lock, istio_init.kernel.detection
import istio_init.start, istio_init.plans
def told(module):
    spec = module.__spec__
    return [module.__file__, module.__cached__, module.__package__, getattr(module, "__path__", None),
            type(module.__loader__).__name__, spec.name, spec.origin, spec.has_location, spec.cached,
            spec.submodule_search_locations, sys.modules["istio_init.run"].run.__code__.co_filename]
print(json.dumps({{name: told(module) for name, module in sys.modules.items() if name.startswith("istio_init.")}}))
"""
# Without the importer, for modules of ours: what load() can't do fails.
ALONE = """
import istio_init.preload
class Refuses:
    def find_spec(self, name, path=None, target=None):
        if name.startswith("istio_init"):
            raise ImportError("asked for " + name)
sys.meta_path.insert(0, Refuses())
istio_init.preload.load()
sys.meta_path.pop(0)
"""
LOADING = "from istio_init.preload import load; load(); before = set(sys.modules)"
COUNTING = f"{LOADING}; print(sum(name.startswith('istio_init.') for name in before) - 1); sys.exit()"


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The program as pip leaves it: sources, and byte code beside them."""
    shutil.copytree(PACKAGE, tmp_path / "istio_init", ignore=shutil.ignore_patterns("__pycache__"))
    compiled(tmp_path, py_compile.PycInvalidationMode.TIMESTAMP)
    return tmp_path


def compiled(place: Path, mode: py_compile.PycInvalidationMode) -> None:
    assert compileall.compile_dir(place, quiet=1, force=True, invalidation_mode=mode)


def run(place: Path, first: str, *flags: str) -> str:
    command = [sys.executable, "-I", "-B", *flags, "-c", TELLING.format(first=first), str(place)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def loaded(place: Path, *flags: str) -> int:
    """How many modules are there when load() is done."""
    return int(run(place, COUNTING, *flags))


def test_all_are_loaded_and_the_importer_is_not_asked(installed: Path) -> None:
    run(installed, ALONE)
    assert loaded(installed) == len(MODULES)


def test_they_are_as_the_importer_has_them(installed: Path) -> None:
    ours: dict[str, Any] = json.loads(run(installed, LOADING))
    theirs: dict[str, Any] = json.loads(run(installed, "pass"))
    assert ours.pop("istio_init.preload")
    assert ours == theirs


def test_they_are_what_a_plain_run_imports() -> None:
    lines = [line.split(": ") for line in LISTED.read_text().splitlines() if line.startswith("istio_init.")]
    imported = {name.removeprefix("istio_init.") for name, scenarios in lines if "redirect" in scenarios.split()}
    # The image's door, which pip's scripts do not go through.
    assert set(MODULES) == imported - {"entry"}


@pytest.mark.parametrize(
    ("mode", "all_of_them"),
    [
        (py_compile.PycInvalidationMode.UNCHECKED_HASH, True),
        (py_compile.PycInvalidationMode.CHECKED_HASH, False),
    ],
)
def test_a_hash_is_the_importers_to_check(
    installed: Path, mode: py_compile.PycInvalidationMode, all_of_them: bool
) -> None:
    compiled(installed, mode)
    assert loaded(installed) == (len(MODULES) if all_of_them else 0)


def test_a_source_that_changed_is_what_counts(installed: Path) -> None:
    source = installed / "istio_init" / "values.py"
    source.write_text(source.read_text() + "\nCHANGED = True\n")
    assert loaded(installed) == MODULES.index("values")
    first = f"{LOADING}; import istio_init.values; print(istio_init.values.CHANGED); sys.exit()"
    assert run(installed, first) == "True\n"


@pytest.mark.parametrize("flags", [("-O",), ("-X", "pycache_prefix=/nowhere")])
def test_byte_code_that_is_elsewhere_is_the_importers_to_find(installed: Path, flags: tuple[str, ...]) -> None:
    assert loaded(installed, *flags) == 0


def test_without_byte_code_all_is_left(installed: Path) -> None:
    for cache in installed.rglob("__pycache__"):
        shutil.rmtree(cache)
    assert loaded(installed) == 0


def test_byte_code_of_another_python_is_left(installed: Path) -> None:
    [cached] = (installed / "istio_init" / "__pycache__").glob("errors.*.pyc")
    cached.write_bytes(b"\0\0\r\n" + cached.read_bytes()[4:])
    assert loaded(installed) == 0


def test_a_module_that_fails_is_not_left_half_done(installed: Path) -> None:
    source = installed / "istio_init" / "values.py"
    source.write_text("raise OSError('no')\n")
    compiled(installed, py_compile.PycInvalidationMode.TIMESTAMP)
    first = """
from istio_init.preload import load
try:
    load()
except OSError as error:
    print(error, "istio_init.values" in sys.modules)
sys.exit()
"""
    assert run(installed, first) == "no False\n"
