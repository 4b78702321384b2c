"""mandoc has nothing to say against the manual pages."""

from __future__ import annotations

import subprocess

from integration.kit.program import ROOT
from scripts.generate.man_pages import PAGES, path

# mandoc looks for the pages that are referred to among the installed ones; tests/project/test_man_pages.py checks ours.
ELSEWHERE = "referenced manual not found: Xr "


def test_mandoc_has_no_complaint() -> None:
    pages = [str(ROOT / "docs/man" / path(name)) for name in PAGES]
    output = subprocess.run(["mandoc", "-T", "lint", *pages], capture_output=True, text=True, check=False).stdout
    assert [line for line in output.splitlines() if ELSEWHERE not in line] == []
    shown = subprocess.run(["mandoc", "-T", "utf8", *pages], capture_output=True, text=True, check=True)
    assert shown.stdout.count("ISTIO-INIT(1)") == 2
