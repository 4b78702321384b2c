"""The instructions that are shipped are what clang makes of the source, for every processor; bpf(2)'s numbers there."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

from integration.kit.program import ROOT
from istio_init.kernel.ebpf import programs, syscall

CLANG = f"clang-{programs.COMPILER.rpartition(' ')[2]}"
BUILD = ROOT / "image" / "bpf" / "build.py"
ARM64, POWER = "/usr/aarch64-linux-gnu/include", "/usr/powerpc64le-linux-gnu/include"
# Of each machine: the target of clang, the directory of the kernel's headers, and the header with the numbers. Those of
# riscv64 and loongarch64 are the kernel's generic ones, which arm64's package has.
MACHINES = {
    "x86_64": ("x86_64-linux-gnu", "/usr/include/x86_64-linux-gnu", "asm/unistd.h"),
    "aarch64": ("aarch64-linux-gnu", ARM64, "asm/unistd.h"),
    "riscv64": ("riscv64-linux-gnu", ARM64, "asm-generic/unistd.h"),
    "loongarch64": ("loongarch64-linux-gnu", ARM64, "asm-generic/unistd.h"),
    "ppc64le": ("powerpc64le-linux-gnu", POWER, "asm/unistd.h"),
}


def test_the_instructions_are_what_clang_makes() -> None:
    command = [sys.executable, str(BUILD), "--check", CLANG]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_they_are_the_same_with_the_headers_of_arm64() -> None:
    spec = importlib.util.spec_from_file_location("build", BUILD)
    assert spec is not None
    assert spec.loader is not None
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    assert build.native_headers(CLANG) != ARM64
    assert build.compiled(CLANG, ARM64) == build.TARGET.read_text()


@pytest.mark.parametrize("machine", MACHINES)
def test_the_number_of_bpf_is_the_headers(machine: str) -> None:
    target, headers, name = MACHINES[machine]
    command = [CLANG, f"--target={target}", "-nostdinc", f"-I{headers}", "-I/usr/include", "-E", "-P", "-"]
    text = f"#include <{name}>\n__NR_bpf\n"
    printed = subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout
    assert int(printed.split()[-1]) == syscall.NUMBERS[machine]


def test_every_machine_is_compared() -> None:
    assert syscall.NUMBERS.keys() == MACHINES.keys()
