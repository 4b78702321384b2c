#!/usr/bin/env python3
"""Compiles capture.bpf.c into istio_init/kernel/ebpf/programs.py: build.py [--check] [CLANG].

What a node loads is then a module of bytes: no ELF, no libbpf and no compiler there. The instructions are the same on
every little-endian machine. `--check` writes nothing and exits 1 where the module differs from what clang makes, which
should be the version that the module names. Needs clang and libbpf's headers (Debian: clang-19 libbpf-dev).
"""

from __future__ import annotations

import hashlib
import pathlib
import re
import struct
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
SOURCE = HERE / "capture.bpf.c"
TARGET = HERE.parents[1] / "istio_init" / "kernel" / "ebpf" / "programs.py"
CLANG = "clang-19"
FLAGS = ("-O2", "-Wall", "-Werror", "-target", "bpfel", "-mcpu=v2")
# The number in capture.bpf.c that the loader replaces by the network namespace's cookie.
COOKIE = 0x6E65746E73636F6B
SECTIONS = (
    *("cgroup/connect4", "cgroup/connect6", "cgroup/sendmsg4", "cgroup/sendmsg6", "cgroup/recvmsg4"),
    *("cgroup/recvmsg6", "cgroup/getpeername4", "cgroup/getpeername6", "cgroup/getsockopt", "sockops", "sk_lookup"),
)
# <elf.h>, <linux/bpf.h>
SHT_SYMTAB, SHT_REL = 2, 9
LD_IMM64, PSEUDO_MAP_FD = 0x18, 1

Program = tuple[bytes, list[tuple[int, str]]]


def programs(image: bytes) -> dict[str, Program]:
    """Each program of an ELF file by its section: the instructions, and where each refers to which map."""
    (table,) = struct.unpack_from("<Q", image, 40)
    size, count, names_at = struct.unpack_from("<HHH", image, 58)
    headers = [struct.unpack_from("<IIQQQQIIQQ", image, table + number * size) for number in range(count)]

    def text(start: int) -> str:
        return image[start : image.index(b"\0", start)].decode()

    names = [text(headers[names_at][4] + header[0]) for header in headers]
    symbols = next(header for header in headers if header[1] == SHT_SYMTAB)
    words = headers[symbols[6]][4]
    symbol = [text(words + struct.unpack_from("<I", image, symbols[4] + at)[0]) for at in range(0, symbols[5], 24)]
    by_section: dict[str, Program] = {
        name: (image[header[4] : header[4] + header[5]], [])
        for name, header in zip(names, headers, strict=True)
        if name in SECTIONS
    }
    for name, header in zip(names, headers, strict=True):
        section = name.removeprefix(".rel")
        if header[1] == SHT_REL and section in by_section:
            for at in range(header[4], header[4] + header[5], 16):
                offset, info = struct.unpack_from("<QQ", image, at)
                by_section[section][1].append((offset, symbol[info >> 32]))
    return by_section


def cookies(code: bytes) -> tuple[int, ...]:
    """Where a program loads the number that stands for the cookie."""
    low, high = struct.pack("<I", COOKIE & 0xFFFFFFFF), struct.pack("<I", COOKIE >> 32)
    return tuple(
        at
        for at in range(0, len(code) - 8, 8)
        if code[at] == LD_IMM64 and code[at + 4 : at + 8] == low and code[at + 12 : at + 16] == high
    )


def marked(code: bytes, references: list[tuple[int, str]]) -> bytes:
    """The instructions with each reference to a map marked as a load of its descriptor."""
    patched = bytearray(code)
    for offset, name in references:
        if code[offset] != LD_IMM64:
            raise SystemExit(f"{name} at {offset}: not a load of 64 bits")
        patched[offset + 1] = code[offset + 1] & 0x0F | PSEUDO_MAP_FD << 4
    return bytes(patched)


def native_headers(clang: str) -> str:
    """Where Debian has the kernel's headers for this machine's processor."""
    multiarch = subprocess.run([clang, "-print-target-triple"], check=True, capture_output=True, text=True).stdout
    return f"/usr/include/{re.sub('-(pc|unknown)-', '-', multiarch.strip())}"


def compiled(clang: str, kernel_headers: str = "") -> str:
    """The text of the module; `kernel_headers` is the directory of another processor's, which changes nothing."""
    version = subprocess.run([clang, "--version"], check=True, capture_output=True, text=True).stdout.split("\n")[0]
    headers = f"-I{kernel_headers or native_headers(clang)}"
    with tempfile.TemporaryDirectory() as directory:
        built = pathlib.Path(directory, "capture.o")
        command = [clang, *FLAGS, headers, "-c", SOURCE.name, "-o", built]
        subprocess.run(command, check=True, cwd=HERE)
        sections = programs(built.read_bytes())
    major = re.search(r"clang version (\d+)", version)
    lines = [
        '"""The programs of image/bpf/capture.bpf.c, made by image/bpf/build.py. Do not edit.',
        "",
        "By section: the instructions, where they refer to which map, and where the namespace's cookie goes.",
        '"""',
        "",
        "# fmt: off",
        f'COMPILER = "clang {major[1] if major else version}"',
        f'RELEASE = "{hashlib.sha256(repr(sections).encode()).hexdigest()[:12]}"  # other programs have another one',
        "PROGRAMS: dict[str, tuple[bytes, tuple[tuple[int, str], ...], tuple[int, ...]]] = {",
    ]
    for name in SECTIONS:
        code, references = sections[name]
        lines.append(f"    {name!r}: (")
        instructions = marked(code, references)
        lines += [f"        {instructions[at : at + 40]!r}" for at in range(0, len(instructions), 40)]
        lines.append(f"        , {tuple(references)!r}, {cookies(code)!r}),")
    return "\n".join([*lines, "}", ""])


def main(arguments: list[str]) -> int:
    """Write the module, or check it."""
    check = "--check" in arguments
    rest = [each for each in arguments if each != "--check"]
    text = compiled(rest[0] if rest else CLANG)
    if check:
        same = TARGET.read_text() == text
        print(f"{TARGET}: {'as' if same else 'differs from what'} {CLANG} makes it")
        return 0 if same else 1
    TARGET.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
