"""Another kernel than this machine's, booted in a virtual one that has what this machine has, and no disk.

The kernel is the distribution's, unpacked from its package and not installed. Its root file system is a cpio archive in
memory: this Python, the program and the tools to look with, each at the path that it has here. Modules are loaded when
the kernel asks for them, as on any machine, or are left out as if they had never been built.

The processor is emulated (it takes no /dev/kvm, and is the same everywhere), so a boot takes a few seconds. Its clock
counts instructions: the kernel would gauge one that follows this machine's wrongly, and run up to fifty times too fast,
where this machine is busy.
"""

from __future__ import annotations

import contextlib
import encodings
import json
import os
import pathlib
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from integration.kit import guest
from integration.kit.cpio import Archive
from integration.kit.debian import unpack
from integration.kit.namespace import Namespace
from integration.kit.program import ROOT, bytecode_compiled

# Debian's and Ubuntu's for virtual machines, the first that the package lists know.
PACKAGES = ("linux-image-cloud-amd64", "linux-image-virtual")
UNPACKED = re.compile(r"^linux-(?:image|binary|modules)-(?:unsigned-)?\d")
MADE_BEFORE = "ISTIO_INIT_TEST_KERNEL"
# Netfilter's, and the device by which packets leave.
MODULES = (
    *("kernel/net/netfilter/", "kernel/net/ipv4/netfilter/", "kernel/net/ipv6/netfilter/"),
    "kernel/drivers/net/dummy.ko",
)
SYSTEM = "/usr/sbin:/usr/bin:/sbin:/bin"

TOOLS = ("kmod", "ip", "nft", "xtables-legacy-multi", "xtables-nft-multi")
# By which name they are called in there, where it is another.
LINKS = {
    "/sbin/modprobe": "kmod",
    "/usr/bin/iptables-legacy-save": "xtables-legacy-multi",
    "/usr/bin/ip6tables-legacy-save": "xtables-legacy-multi",
    "/usr/bin/iptables-legacy": "xtables-legacy-multi",
    "/usr/bin/iptables-nft": "xtables-nft-multi",
}
# The extensions of iptables that a case loads rules of, below the directory of libraries.
EXTENSIONS = ("libxt_standard.so", "libxt_LED.so", "libxt_ipvs.so")
# Seconds; an emulated processor is slow, and on a busy machine much slower.
PATIENCE = 2400.0

# What the program, and the one that starts it in there, have loaded once the doctor has tried everything.
INVENTORY = """
import glob, json, os, sys
from integration.kit.guest import console
said, sys.stdout, sys.argv = sys.stdout, open("/dev/null", "w"), ["istio-init", "doctor", "--output", "json"]
try:
    console.istio_init()
except SystemExit:
    pass
files = [f for m in list(sys.modules.values()) for f in (getattr(m, "__file__", None), getattr(m, "__cached__", None))]
maps = {line.split()[-1] for line in open("/proc/self/maps") if ".so" in line}
# By the names that they are looked for by, too.
maps |= {name for path in maps for name in glob.glob(path.partition(".so")[0] + ".so*")}
json.dump(sorted(f for f in {*files, *maps} if f and os.path.exists(f)), said)
"""


class Outcome(NamedTuple):
    """What a run in there came to, and what stood in its network namespace before and after."""

    code: int
    output: str
    log: str
    before: dict[str, str]
    after: dict[str, str]


def unpack_other_kernel(suite: str, directory: pathlib.Path) -> None:
    """The kernel of another release of Debian, from its archive."""
    unpack(suite, PACKAGES[0], directory, UNPACKED)
    arrange(directory)


def arrange(directory: pathlib.Path) -> None:
    """Put modules and kernel where this program looks: newer packages have both below usr/lib/modules."""
    modules, boot = directory / "lib/modules", directory / "boot"
    if (directory / "usr/lib/modules").exists():
        shutil.copytree(directory / "usr/lib/modules", modules, dirs_exist_ok=True)
    boot.mkdir(exist_ok=True)
    for image in modules.glob("*/vmlinuz"):
        image.rename(boot / f"vmlinuz-{image.parent.name}")


def unpack_kernel(directory: pathlib.Path) -> None:
    """The distribution's kernel and its modules, below boot/ and lib/modules/; from its mirror."""
    for package in PACKAGES:
        output = subprocess.run(
            ["apt-cache", "depends", "--recurse", "--important", package], capture_output=True, text=True, check=False
        )
        if names := {name for name in output.stdout.split() if UNPACKED.match(name)}:
            break
    else:
        raise AssertionError(f"apt knows none of {', '.join(PACKAGES)}: apt-get update")
    subprocess.run(["apt-get", "download", *sorted(names)], cwd=directory, check=True, capture_output=True)
    for archive in directory.glob("*.deb"):
        subprocess.run(["dpkg-deb", "--extract", archive, directory], check=True)
    arrange(directory)


class Machine:
    """A kernel, and a root file system to boot it with, made in a directory of the caller's.

    The kernel is this distribution's, or that of a release of Debian.
    """

    def __init__(self, directory: pathlib.Path, suite: str = "") -> None:
        result = "" if suite else os.environ.get(MADE_BEFORE)
        self._directory = directory
        self._kernel = pathlib.Path(result) if result else directory / "kernel"
        if suite:
            unpack_other_kernel(suite, self._kernel)
        elif not result:
            self._kernel.mkdir()
            unpack_kernel(self._kernel)
        [self._image] = (self._kernel / "boot").glob("vmlinuz-*")
        self.release = self._image.name.removeprefix("vmlinuz-")

    def run(self, cases: Sequence[guest.Case]) -> list[list[Outcome]]:
        """Boot it, and have it do the cases; AssertionError, with what the console shows, where it does not."""
        root = self._root()
        root.write(guest.CASES, json.dumps(cases).encode())
        initial, console, report = (self._directory / name for name in ("root.cpio", "console", "report"))
        initial.write_bytes(root.dump())
        command = [
            *("qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-m", "768", "-nographic", "-no-reboot"),
            *("-icount", "shift=2,sleep=off"),
            *("-nodefaults", "-serial", f"file:{console}", "-serial", f"file:{report}"),
            *("-kernel", str(self._image), "-initrd", str(initial)),
            *("-append", "console=ttyS0 panic=-1 quiet no_timer_check rcupdate.rcu_expedited=1"),
        ]
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(command, check=True, timeout=PATIENCE, stdin=subprocess.DEVNULL)
        lines = report.read_text().splitlines()
        assert len(lines) == len(cases), console.read_text(errors="replace")
        return [[Outcome(*each) for each in json.loads(line)] for line in lines]

    def _root(self) -> Archive:
        root = Archive()
        # Whole, as some of their modules are only imported where something fails, or is found by its name.
        whole = (ROOT / "istio_init", pathlib.Path(encodings.__file__).parent)
        for path in (*inventory(), *(str(each) for directory in whole for each in directory.rglob("*.py*"))):
            root.file(path)
        for name in (*TOOLS, sys.executable):
            path = os.path.realpath(tool(name))
            for each in (path, *libraries(path)):
                root.file(each)
        for extension in EXTENSIONS:
            [path] = map(str, pathlib.Path("/usr/lib").glob(f"*/xtables/{extension}"))
            root.file(path)
        for link, name in LINKS.items():
            root.link(link, os.path.realpath(tool(name)))
        for directory in ("/proc", "/sys", "/dev", "/run", "/tmp", "/etc"):
            root.directory(directory)
        root.write("/etc/resolv.conf", b"nameserver 192.0.2.53\n")
        root.file("/etc/protocols")  # nft prints their names
        self._add_modules(root)
        root.write("/init", launcher().encode(), stat.S_IFREG | 0o755)
        return root

    def _add_modules(self, root: Archive) -> None:
        """The modules and those that they need, with the index that modprobe reads."""
        home = self._kernel / "lib/modules" / self.release
        if not (home / "modules.dep.bin").exists():
            subprocess.run([tool("depmod"), "-b", self._kernel, self.release], check=True)
        needs = dict(line.split(":") for line in (home / "modules.dep").read_text().splitlines())
        desired = {name for name in needs if name.startswith(MODULES)}
        desired |= {each for name in desired for each in needs[name].split()}
        for path in (*sorted(desired), *(each.name for each in home.glob("modules.*"))):
            root.write(f"/lib/modules/{self.release}/{path}", (home / path).read_bytes())


def tool(name: str) -> str:
    """The distribution's program of this name; AssertionError where it is not installed."""
    path = shutil.which(name, path=SYSTEM)
    assert path, f"{name} is not installed; scripts/test installs it"
    return path


def libraries(program: str) -> Iterator[str]:
    """The shared libraries that a program needs, the dynamic linker among them."""
    output = subprocess.run(["ldd", program], check=True, capture_output=True, text=True).stdout
    return (word for word in output.split() if word.startswith("/"))


def inventory() -> list[str]:
    """The files that the program and guest.py have loaded, once the doctor has tried everything."""
    bytecode_compiled()
    with Namespace() as namespace:
        files: list[str] = json.loads(namespace.run("env", f"PYTHONPATH={ROOT}", sys.executable, "-c", INVENTORY))
    return files


def launcher() -> str:
    """What the kernel starts: this Python, with the modules where they are here."""
    paths = [str(ROOT), *(path for path in sys.path if path.endswith(("site-packages", "dist-packages")))]
    return f"""#!{os.path.realpath(sys.executable)} -S
import os, sys
os.environ.update(PATH={SYSTEM!r}, PYTHONPATH={os.pathsep.join(paths)!r}, PYTHONSAFEPATH="1")
sys.path += {paths!r}
from integration.kit import guest
guest.main()
"""
