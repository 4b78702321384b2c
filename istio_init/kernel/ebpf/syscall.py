"""bpf(2) by ctypes: the commands that capture needs, after `union bpf_attr` in <linux/bpf.h>.

Every function raises OSError with the kernel's errno. Integers are in host order; the caller closes descriptors.
"""

from __future__ import annotations

import errno
import posix as os  # the C half of os; the other half costs a start a millisecond
from _struct import Struct, pack, unpack_from

from istio_init.kernel.host.libc import Pointer, addressof, byref, function, get_errno, library

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

# The number of bpf(2), by machine (arch/*/include, syscall tables).
NUMBERS = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "loongarch64": 280, "ppc64le": 361}

# enum bpf_cmd
MAP_CREATE, MAP_LOOKUP, MAP_UPDATE, MAP_DELETE, MAP_GET_NEXT_KEY, PROG_LOAD, OBJ_PIN, OBJ_GET = range(8)
OBJ_GET_INFO_BY_FD, PROG_QUERY, BTF_LOAD, LINK_CREATE, LINK_UPDATE, LINK_DETACH = 15, 16, 18, 28, 29, 34

_ATTR_BYTES = 128  # longer than any command here needs; the kernel wants what it does not know to be zero
_LOG_BYTES = 1 << 20  # of the verifier's explanation
_MAP = Struct("<7I16s5I")
_PROGRAM = Struct("<IIQQIIQII16sII")
LICENSE = b"Apache-2.0\0"
BPF_F_BEFORE = 1 << 3  # Linux 6.17: run before the programs that are attached already


def call(command: int, attributes: bytes) -> int:
    """One bpf(2) call; returns its result, which is a new descriptor or 0."""
    return _call(command, bytearray(attributes.ljust(_ATTR_BYTES, b"\0")))


def _call(command: int, buffer: bytearray) -> int:
    number = NUMBERS.get(os.uname().machine)
    if number is None:
        raise OSError(errno.ENOSYS, f"bpf(2) is not known for {os.uname().machine}")
    syscall = function(library(None), "syscall")
    result: int = syscall(number, command, byref(Pointer.from_buffer(buffer)), len(buffer))
    if result < 0:
        failed = get_errno()
        raise OSError(failed, os.strerror(failed))
    return result


class Buffer:
    """Bytes at an address that stays valid as long as this object lives."""

    def __init__(self, data: bytes) -> None:
        # A Pointer can only be laid over eight bytes or more.
        self._bytes = bytearray(data.ljust(8, b"\0"))
        self._held = Pointer.from_buffer(self._bytes)
        self.size = len(data)
        self.address: int = addressof(self._held)

    def __bytes__(self) -> bytes:
        return bytes(self._bytes[: self.size])


def create_map(  # noqa: PLR0913, PLR0917 (a map's attributes)
    name: str, kind: int, key: int, value: int, entries: int, flags: int, btf: int = 0
) -> int:
    """A new map; sizes in bytes. `btf` is a descriptor from load_btf, needed by socket storage alone."""
    types = (1, 2) if btf else (0, 0)
    attributes = _MAP.pack(kind, key, value, entries, flags, 0, 0, name.encode()[:15], 0, btf, *types, 0)
    return call(MAP_CREATE, attributes)


def load_btf(value: int) -> int:
    """The two types that a socket storage map must name: 1, an int; 2, an array of ints of `value` bytes."""
    names = b"\0int\0"
    integer = pack("<IIII", 1, 1 << 24, 4, 1 << 24 | 32)  # BTF_KIND_INT, signed, 32 bits
    array = pack("<IIIIII", 0, 3 << 24, 0, 1, 1, value // 4)  # BTF_KIND_ARRAY of it
    types = integer + array
    header = pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(names))
    blob = Buffer(header + types + names)
    return call(BTF_LOAD, pack("<QQIII", blob.address, 0, blob.size, 0, 0))


def update(descriptor: int, key: bytes, value: bytes) -> None:
    """Set one element of a map."""
    held_key, held_value = Buffer(key), Buffer(value)
    call(MAP_UPDATE, pack("<IIQQQ", descriptor, 0, held_key.address, held_value.address, 0))


def lookup(descriptor: int, key: bytes, size: int) -> bytes | None:
    """The value of one element, of `size` bytes; None where there is no such element."""
    held_key, held_value = Buffer(key), Buffer(bytes(size))
    try:
        call(MAP_LOOKUP, pack("<IIQQQ", descriptor, 0, held_key.address, held_value.address, 0))
    except FileNotFoundError:
        return None
    return bytes(held_value)


def delete(descriptor: int, key: bytes) -> None:
    """Remove one element of a map, if it is there."""
    held = Buffer(key)
    try:
        call(MAP_DELETE, pack("<IIQ", descriptor, 0, held.address))
    except FileNotFoundError:
        pass


def keys_after(descriptor: int, key: bytes) -> Iterator[bytes]:
    """The keys that follow one in a map's order, to the last."""
    while True:
        held_key, following = Buffer(key), Buffer(bytes(len(key)))
        try:
            call(MAP_GET_NEXT_KEY, pack("<IIQQ", descriptor, 0, held_key.address, following.address))
        except FileNotFoundError:
            return
        yield (key := bytes(following))


def load_program(name: str, kind: int, expected: int, instructions: bytes) -> int:
    """Load a program. The OSError's text ends with the verifier's last lines where it refuses."""
    code, license_ = Buffer(instructions), Buffer(LICENSE)

    def load(level: int, address: int, size: int) -> int:
        attributes = _PROGRAM.pack(
            kind, len(instructions) // 8, code.address, license_.address, level, size, address, 0, 0,
            name.encode()[:15], 0, expected,
        )  # fmt: skip
        return call(PROG_LOAD, attributes)

    try:
        return load(0, 0, 0)
    except OSError as error:
        log = Buffer(bytes(_LOG_BYTES))
        try:
            return load(1, log.address, log.size)
        except OSError:
            message = bytes(log).rstrip(b"\0").decode(errors="replace").strip().replace("\n", "; ")[-300:]
            raise OSError(error.errno, f"{name}: {error.strerror}{f': {message}' if message else ''}") from error


def pin(descriptor: int, path: str) -> None:
    """Give a map, program or link a name in a BPF file system; names there have no dot."""
    held = Buffer(path.encode() + b"\0")
    call(OBJ_PIN, pack("<QII", held.address, descriptor, 0))


def pinned(path: str) -> int:
    """A descriptor of what is pinned at a path."""
    held = Buffer(path.encode() + b"\0")
    return call(OBJ_GET, pack("<QII", held.address, 0, 0))


def create_link(program: int, target: int, attach_type: int, flags: int = 0) -> int:
    """Attach a program to a cgroup or network namespace, by the target's descriptor."""
    return call(LINK_CREATE, pack("<IIII", program, target, attach_type, flags))


def update_link(link: int, program: int) -> None:
    """Put another program in the place of a link's, without a moment in between."""
    call(LINK_UPDATE, pack("<IIII", link, program, 0, 0))


def detach_link(link: int) -> None:
    """Detach a link's program at once, even if the link is pinned or other processes have descriptors of it."""
    call(LINK_DETACH, pack("<I", link))


def link_namespace(link: int) -> int:
    """The inode of the network namespace that a link is attached to (bpf_link_info.netns); 0 once that is gone."""
    number: int = unpack_from("<I", _link_information(link), 16)[0]
    return number


def link_cgroup(link: int) -> int:
    """The id of the cgroup that a link is attached to (bpf_link_info.cgroup); 0 once it is detached."""
    number: int = unpack_from("<Q", _link_information(link), 16)[0]
    return number


def _link_information(link: int) -> bytes:
    information = Buffer(bytes(256))
    call(OBJ_GET_INFO_BY_FD, pack("<IIQ", link, information.size, information.address))
    return bytes(information)


def attached_programs(cgroup: int, attach_type: int) -> tuple[int, ...]:
    """The ids of the programs attached to a cgroup itself, in the order in which they run; at most 64."""
    ids = Buffer(bytes(4 * 64))
    buffer = bytearray(pack("<IIIIQI", cgroup, attach_type, 0, 0, ids.address, 64).ljust(_ATTR_BYTES, b"\0"))
    _call(PROG_QUERY, buffer)
    count: int = unpack_from("<I", buffer, 24)[0]
    return unpack_from(f"<{count}I", bytes(ids))
