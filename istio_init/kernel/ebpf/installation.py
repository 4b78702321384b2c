"""What a node has of capture by eBPF: maps, programs at the root cgroup, and their pins.

Everything is pinned below one directory of a BPF file system that only root may enter, see pin_directory:

    DIRECTORY/v1/maps/{pods,members,notes,handover,listeners,counts}
    DIRECTORY/v1/links/{connect4,...}     at the root cgroup
    DIRECTORY/v1/pods/<cookie>            the pod's sk_lookup program (pods.py)
    DIRECTORY/v1/release-<digest>         an empty directory that says which programs are attached

`v1` is the layout of the maps: an installation of another layout stays beside it, each with its own pods (layouts.py).
Programs of another release with the same layout are replaced by the first ADD of this one.
"""

from __future__ import annotations

import errno
import posix as os  # the C half of os; the other half costs a start a millisecond
from _struct import pack_into

from istio_init.errors import KernelError
from istio_init.kernel.ebpf import layouts, links, pins, syscall
from istio_init.kernel.ebpf.layout import MEMBER_BYTES, NOTE_BYTES, POD
from istio_init.kernel.ebpf.programs import PROGRAMS, RELEASE
from istio_init.kernel.ebpf.refusal import netns_cookie, refusal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

LAYOUT = "v1"
# Variables of the environment: where the node's BPF file system is mounted if not at its usual path, as in the agent's
# container, and a cgroup to attach to instead of the root, whose processes alone are then captured.
BPF_VARIABLE, CGROUP_VARIABLE = b"ISTIO_INIT_BPF", b"ISTIO_INIT_CGROUP"
_ROOT_INODE = 1  # of the root of the cgroup v2 hierarchy; a container's root is another directory of it

# enum bpf_map_type
_HASH, _PERCPU_ARRAY, _LRU_HASH, _LPM_TRIE, _SOCKHASH, _SK_STORAGE = 1, 6, 9, 11, 18, 24
_NO_PREALLOC, _CLONE = 1, 1 << 9
# Type, bytes of a key and of a value, entries, flags; the sizes of the structs in capture.bpf.c.
MAPS = {
    "pods": (_HASH, 8, POD.size, 4096, _NO_PREALLOC),
    "members": (_LPM_TRIE, MEMBER_BYTES, 4, 262_144, _NO_PREALLOC),
    "notes": (_SK_STORAGE, 4, NOTE_BYTES, 0, _NO_PREALLOC | _CLONE),
    "handover": (_LRU_HASH, 48, 20, 32_768, 0),
    "listeners": (_SOCKHASH, 16, 8, 65_536, 0),
    "counts": (_PERCPU_ARRAY, 4, 8, 16, 0),
}

# enum bpf_prog_type and bpf_attach_type, by section, in the order in which they are attached: what turns connections
# comes last, when what serves the turned ones is there.
_SOCK_OPS, _SOCK_ADDR, _SOCKOPT, _SK_LOOKUP = 13, 18, 25, 30
HOOKS = {
    "cgroup/getsockopt": (_SOCKOPT, 21),
    "sockops": (_SOCK_OPS, 3),
    "cgroup/getpeername4": (_SOCK_ADDR, 29),
    "cgroup/getpeername6": (_SOCK_ADDR, 30),
    "cgroup/connect4": (_SOCK_ADDR, 10),
    "cgroup/connect6": (_SOCK_ADDR, 11),
}
# Attached with the first pod that has DNS capture: these see every datagram of the node.
DNS_HOOKS = {
    "cgroup/recvmsg4": (_SOCK_ADDR, 19),
    "cgroup/recvmsg6": (_SOCK_ADDR, 20),
    "cgroup/sendmsg4": (_SOCK_ADDR, 14),
    "cgroup/sendmsg6": (_SOCK_ADDR, 15),
}
ALL_HOOKS = {**HOOKS, **DNS_HOOKS}
INBOUND, NETNS_SK_LOOKUP = "sk_lookup", 36
# These come before other programs' at the same hook, which would see a service's address and turn it to an endpoint's:
# the proxy could not tell which service was called.
_FIRST = ("cgroup/connect4", "cgroup/connect6", "cgroup/sendmsg4", "cgroup/sendmsg6")
_MARK = "release-"


class Installation:
    """The programs at a cgroup, pinned below a directory. Every method that changes something takes the lock."""

    def __init__(self, cgroup: str, directory: str = "") -> None:
        self.cgroup, self.directory = cgroup, directory or pin_directory()
        self.home = f"{self.directory}/{LAYOUT}"
        self._maps: dict[str, int] = {}

    def path(self, part: str, name: str) -> str:
        """Where something is pinned; of a section's name only what comes after the slash counts."""
        return f"{self.home}/{part}/{name.rpartition('/')[2]}"

    @property
    def installed(self) -> bool:
        """Whether the maps exist; KernelError where the directory cannot be looked into."""
        return pins.exists(self.home)

    @property
    def _release(self) -> str:
        return f"{self.home}/{_MARK}{RELEASE}"

    @property
    def has_dns(self) -> bool:
        """Whether the programs for UDP are attached."""
        return any(pins.exists(self.path("links", each)) for each in DNS_HOOKS)

    def lock(self) -> pins.Lock:
        """One process at a time on this node, in a `with`; the directory of the pins is what is locked."""
        return pins.Lock(self.directory)

    def install(self, *, dns: bool) -> None:
        """Make what is missing of maps, programs and links, all or nothing; `dns` includes those for UDP.

        KernelError where the kernel refuses. The caller holds the lock.
        """
        try:
            if not pins.exists(self.home):
                self._create_all()
            elif not pins.exists(self._release):
                self.upgrade()
            self._attach(self.missing_links(dns=dns))
        except OSError as error:
            raise refusal(error) from error

    def _create_all(self) -> None:
        """Make all maps aside and give them their name in one step. The caller holds the lock."""
        for name in os.listdir(self.directory):
            if "-" in name:  # left by a process that was killed
                pins.clear(f"{self.directory}/{name}")
        aside = f"{self.home}-{os.getpid()}"
        try:
            for part in ("", "/maps", "/links", "/pods"):
                os.mkdir(f"{aside}{part}", 0o700)
            os.mkdir(f"{aside}/{_MARK}{RELEASE}", 0o700)
            for name in MAPS:
                self.create(name)
                syscall.pin(self._maps[name], f"{aside}/maps/{name}")
            os.rename(aside, self.home)
        except BaseException:
            pins.clear(aside)
            self.close()
            raise

    def create(self, name: str) -> None:
        """Make one of MAPS, which is not pinned yet."""
        self._maps[name] = _create(name)

    def map(self, name: str) -> int:
        """The descriptor of one of MAPS; KernelError where it is not pinned any more."""
        if name not in self._maps:
            path = self.path("maps", name)
            try:
                self._maps[name] = syscall.pinned(path)
            except FileNotFoundError:
                raise KernelError(
                    f"{path}: missing: capture by eBPF is not installed whole; restart the node's pods"
                ) from None
        return self._maps[name]

    def _attach(self, sections: Sequence[str]) -> None:
        """Load all of these, then attach them: a kernel that refuses one is left as it was."""
        if not sections:
            return
        loaded = {section: self.load(section) for section in sections}
        loaded[INBOUND] = self.load(INBOUND)
        cgroup = os.open(self.cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for section in sections:
                link = _link(loaded[section], cgroup, section)
                try:
                    pins.unlink(self.path("links", section))  # of a link that was detached
                    syscall.pin(link, self.path("links", section))
                finally:
                    os.close(link)
        finally:
            for descriptor in (*loaded.values(), cgroup):
                os.close(descriptor)

    def load(self, section: str, cookie: int = 0) -> int:
        """Load one program with this installation's maps; sk_lookup's knows its pod by the cookie."""
        kind, attach_type = ALL_HOOKS.get(section, (_SK_LOOKUP, NETNS_SK_LOOKUP))
        code, references, cookies = PROGRAMS[section]
        instructions = bytearray(code)
        for offset, name in references:
            pack_into("<i", instructions, offset + 4, self.map(name))
        for offset in cookies:
            pack_into("<I", instructions, offset + 4, cookie & 0xFFFFFFFF)
            pack_into("<I", instructions, offset + 12, cookie >> 32)
        expected = 0 if kind == _SOCK_OPS else attach_type
        return syscall.load_program(section.rpartition("/")[2], kind, expected, bytes(instructions))

    def missing_links(self, *, dns: bool) -> list[str]:
        """The programs that should be attached at the cgroup, and are not or have no pin, by section."""
        return [each for each in (ALL_HOOKS if dns else HOOKS) if not links.is_attached(self.path("links", each))]

    def detach_dns(self) -> None:
        """Take the programs for UDP away again. The caller holds the lock."""
        for section in reversed(DNS_HOOKS):
            links.release(self.path("links", section))

    def upgrade(self) -> None:
        """Put this release's programs in the place of those attached, each in one step; the maps stay.

        KernelError where the kernel refuses. The caller holds the lock.
        """
        attached = [each for each in ALL_HOOKS if pins.exists(self.path("links", each))]
        # All are loaded before any is replaced.
        fresh = [(self.path("links", each), self.load(each)) for each in attached]
        fresh += [(self.path("pods", name), self.load(INBOUND, int(name))) for name in os.listdir(f"{self.home}/pods")]
        for path, program in fresh:
            link = syscall.pinned(path)
            try:
                syscall.update_link(link, program)
            except OSError as error:
                if error.errno not in {errno.ENOLINK, errno.EINVAL}:  # a pod's namespace is gone
                    raise refusal(error) from error
            finally:
                os.close(link)
                os.close(program)
        for name in os.listdir(self.home):
            if name.startswith(_MARK):
                os.rmdir(f"{self.home}/{name}")
        os.mkdir(self._release, 0o700)

    def uninstall(self) -> None:
        """Take everything away. The caller holds the lock."""
        layouts.remove(self.home)
        self.close()

    def close(self) -> None:
        """Close the descriptors of the maps."""
        for descriptor in self._maps.values():
            os.close(descriptor)
        self._maps.clear()


def trial_load() -> None:
    """Create all maps and load all programs, attach and pin nothing; KernelError where the kernel refuses one."""
    netns_cookie()
    installation = Installation("")
    try:
        for name in MAPS:
            installation.create(name)
        for section in (*ALL_HOOKS, INBOUND):
            os.close(installation.load(section))
    except OSError as error:
        raise refusal(error) from error
    finally:
        installation.close()


def _link(program: int, cgroup: int, section: str) -> int:
    """Attach a program; before all others if it has to be, and the kernel can do that (Linux 6.17)."""
    attach_type = ALL_HOOKS[section][1]
    if section in _FIRST:
        try:
            return syscall.create_link(program, cgroup, attach_type, syscall.BPF_F_BEFORE)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
    return syscall.create_link(program, cgroup, attach_type)


def _create(name: str) -> int:
    kind, key, value, entries, flags = MAPS[name]
    btf = syscall.load_btf(NOTE_BYTES) if name == "notes" else 0
    try:
        return syscall.create_map(name, kind, key, value, entries, flags, btf)
    finally:
        if btf:
            os.close(btf)


def pin_directory() -> str:
    """The directory of the pins on this node, as this process sees it."""
    mounted = os.environ.get(BPF_VARIABLE, b"").decode(errors="surrogateescape")
    return f"{mounted or pins.BPF_FILE_SYSTEM}/istio-init"


def root_cgroup() -> str:
    """Where the root of the cgroup v2 hierarchy is mounted; KernelError where this process does not see it."""
    if named := os.environ.get(CGROUP_VARIABLE, b""):
        return named.decode(errors="surrogateescape")
    with open("/proc/self/mountinfo", "rb") as mounts:
        for line in mounts:
            mounted, _, kind = line.partition(b" - ")
            if kind.startswith(b"cgroup2 ") and _is_root(*mounted.split(b" ")[2:5:2]):
                return mounted.split(b" ")[4].decode(errors="surrogateescape")
    raise KernelError(
        "--capture-backend ebpf: the root of the cgroup v2 hierarchy is not mounted here; "
        "mount one at /sys/fs/cgroup/unified, or in a container the node's /sys/fs/cgroup"
    )


def _is_root(device: bytes, path: bytes) -> bool:
    """Whether a path is the root directory of the file system with this device number."""
    try:
        status = os.stat(path)
    except OSError:
        return False
    return status.st_ino == _ROOT_INODE and b"%d:%d" % (os.major(status.st_dev), os.minor(status.st_dev)) == device
