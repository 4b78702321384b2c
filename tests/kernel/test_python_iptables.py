"""The second engine where it can't serve: no package, a child that dies."""

from __future__ import annotations

import importlib.util
import sys

import pytest

from istio_init.errors import InitError, KernelError
from istio_init.kernel.xtables.python_iptables import PythonIptables


def test_without_the_package_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InitError, match=r"pip install 'python-iptables>=.* a C compiler"):
        PythonIptables()


@pytest.mark.parametrize(("program", "code"), [("/bin/false", 1), ("/bin/true", 0)])
def test_a_child_that_does_not_answer_is_an_error(monkeypatch: pytest.MonkeyPatch, program: str, code: int) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(sys, "executable", program)
    with pytest.raises(KernelError, match=f"ipv4: python-iptables ended its process with {code}"):
        PythonIptables().read("ipv4")
