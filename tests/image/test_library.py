"""The archive of modules that no start needs: packed, imported from, and taken apart again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import assemble
root = Path(sys.argv[2])
write = assemble.write_module
for name in ("textwrap", "os", "json/__init__", "json/decoder", "json/encoder", "json/scanner", "encodings/utf_8"):
    file = Path("/", assemble.library_home(), name + ".py")
    write(file, root / assemble.library_home() / (name + ".py"), file)
(root / "own.py").write_text("import json")
write(root / "own.py", root / assemble.HOME / "own.py", "/own.py")
files = {path: path.read_bytes() for path in root.rglob("*.pyc")}
assemble.pack_modules(root, frozenset(sys.argv[3:]))
print(*sorted(path.stem for path in root.rglob("*.pyc")))
archive = (root / assemble.LIBRARY).read_bytes()
assemble.unpack_modules(root)
assert {path: path.read_bytes() for path in root.rglob("*.pyc")} == files
assemble.pack_modules(root, frozenset(sys.argv[3:]))
assert (root / assemble.LIBRARY).read_bytes() == archive
"""


@pytest.mark.parametrize(("stay", "left"), [((), "os utf_8"), (("json",), "__init__ decoder encoder os scanner utf_8")])
def test_modules_are_packed_whole_packages_at_a_time(tmp_path: Path, stay: tuple[str, ...], left: str) -> None:
    command = [sys.executable, "-c", SCRIPT, str(ROOT / "image"), str(tmp_path), *stay]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == left.split()
    archive = tmp_path / "usr/lib/istio-init/library.zip"
    code = f"import sys; sys.path.insert(0, {str(archive)!r}); import own, textwrap as other; print(own, other)"
    output = subprocess.run([sys.executable, "-ISc", code], capture_output=True, text=True, check=True).stdout
    assert output.count(str(archive)) == 2
