"""docs/manifest.md shows what the commands print: `python -m tests.project.test_docs_manifest` writes it anew."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import tempfile
from pathlib import Path

from istio_init.cli.app import main

PAGE = Path(__file__).parents[2] / "docs" / "manifest.md"
COMMAND = re.compile(r"(?<=^```\n)\$ istio-init ([^\n]*)\n(.*?)(?=^```$)", re.MULTILINE | re.DOTALL)
POD = re.compile(r"^```yaml\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def written(page: str) -> str:
    """The page with what its commands print now, run where its pod lies, as it is and with an error in it."""
    pod = POD.search(page)
    assert pod
    with tempfile.TemporaryDirectory() as directory, contextlib.chdir(directory):
        Path("pod.yaml").write_text(pod[1])
        Path("wrong.yaml").write_text(pod[1].replace('"15001"', '"70000"'))
        return COMMAND.sub(lambda result: f"$ istio-init {result[1]}\n{_printed(result[1])}", page)


def _printed(command: str) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
        main(shlex.split(command), {})
    return out.getvalue()


def test_the_page_shows_what_the_commands_print() -> None:
    page = PAGE.read_text()
    assert len(COMMAND.findall(page)) == 4
    assert written(page) == page


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))
