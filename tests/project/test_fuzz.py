"""Every parser of what others write takes anything at all: guided by coverage for a while, and by chance."""

from __future__ import annotations

import importlib.util
import os
import pathlib
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.kit.untrusted import TARGETS

# About two seconds each.
RUNS = {
    "command_line": 3000,
    "save": 3000,
    "cni": 8000,
    "document": 200,
    "injection": 200,
    "nftables": 4000,
    "runtime": 4000,
}
# pyproject.toml says where there is an atheris.
GUIDED = RUNS if importlib.util.find_spec("atheris") else {}


@pytest.mark.parametrize("name", TARGETS)
@given(data=st.one_of(st.binary(max_size=200), st.text(max_size=200).map(lambda text: text.encode("utf-8", "replace"))))
def test_anything_is_taken_or_refused(name: str, data: bytes) -> None:
    TARGETS[name](data)


@pytest.mark.parametrize("name", GUIDED)
def test_nothing_that_coverage_leads_to_breaks_it(name: str, tmp_path: pathlib.Path) -> None:
    command = [
        sys.executable,
        "-m",
        "tests.kit.fuzz",
        name,
        f"-runs={RUNS[name]}",
        "-seed=1",
        f"-artifact_prefix={tmp_path}/",
    ]
    done = subprocess.run(
        command, env={**os.environ, "TMPDIR": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert f"Done {RUNS[name]} runs" in done.stderr
