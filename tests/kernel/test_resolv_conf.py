"""Nameservers out of files such as /etc/resolv.conf."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from istio_init.errors import KernelError
from istio_init.kernel.host.resolv_conf import nameservers


def servers(tmp_path: Path, text: bytes) -> tuple[list[str], tuple[str, ...]]:
    """The servers of a resolv.conf with this text, spelled, and the complaints."""
    path = tmp_path / "resolv.conf"
    path.write_bytes(text)
    result, complaints = nameservers(str(path))
    for server in result:
        assert server.prefix == 8 * len(server.address)
    spelled = [str(ipaddress.ip_address(server.address)) for server in result]
    return spelled, tuple(complaint.replace(str(path), "PATH") for complaint in complaints)


@pytest.mark.parametrize(
    ("text", "addresses"),
    [
        (b"", []),
        (b"nameserver 10.96.0.10\nsearch default.svc.cluster.local\noptions ndots:5\n", ["10.96.0.10"]),
        (b"nameserver 10.0.0.2\nnameserver fd00::a\nnameserver 10.0.0.1", ["10.0.0.2", "fd00::a", "10.0.0.1"]),
        (b"nameserver\t10.0.0.1 \t # mine\n", ["10.0.0.1"]),
        (b"  nameserver 10.0.0.1\r\n", ["10.0.0.1"]),
        (b"nameserver fe80::1%eth0\nnameserver fe80::2%3", ["fe80::1", "fe80::2"]),
        (b"nameserver ::ffff:10.0.0.1\n", ["10.0.0.1"]),
        (b"# nameserver 1.1.1.1\n;nameserver 1.1.1.1\n#nameserver 1.1.1.1\n", []),
        (b"nameservers 1.1.1.1\nNAMESERVER 1.1.1.1\nsearch nameserver 1.1.1.1\n\xff\xff\n", []),
    ],
)
def test_what_is_read(tmp_path: Path, text: bytes, addresses: list[str]) -> None:
    assert servers(tmp_path, text) == (addresses, ())


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (b"nameserver", "''"),
        (b"nameserver localhost", "'localhost'"),
        (b"nameserver 10.0.0.256", "'10.0.0.256'"),
        (b"nameserver 10.0.0.1:53", "'10.0.0.1:53'"),
        (b"nameserver [fd00::1]:53", "'[fd00::1]:53'"),
        (b"nameserver 10.0.0.0/8", "'10.0.0.0/8'"),
        (b"nameserver \xff\x00", "'\\\\xff\\x00'"),
    ],
)
def test_a_line_that_is_wrong_is_complained_about_and_passed_over(tmp_path: Path, line: bytes, shown: str) -> None:
    actual, complaints = servers(tmp_path, b"nameserver 10.0.0.1\n" + line + b"\nnameserver 10.0.0.2\n")
    assert actual == ["10.0.0.1", "10.0.0.2"]
    assert complaints == (f"PATH line 2: nameserver {shown} is not an IP address and is ignored",)


@pytest.mark.parametrize("path", ["/nonexistent/resolv.conf", "/etc/passwd/resolv.conf"])
def test_a_missing_file_has_no_servers(path: str) -> None:
    assert nameservers(path) == ((), ())


def test_one_that_cannot_be_read_is_an_error() -> None:
    with pytest.raises(
        KernelError, match=r"^/etc: the nameservers can't be read: not a regular file; .*--dns-servers$"
    ):
        nameservers("/etc")


@given(st.lists(st.ip_addresses().filter(lambda address: not getattr(address, "ipv4_mapped", None))))
def test_every_server_is_found_in_order(
    tmp_path_factory: pytest.TempPathFactory, addresses: list[ipaddress.IPv4Address | ipaddress.IPv6Address]
) -> None:
    text = "".join(f"nameserver {address}\n" for address in addresses).encode()
    actual, complaints = servers(tmp_path_factory.mktemp("etc"), text)
    assert actual == [str(address) for address in addresses]
    assert complaints == ()


@given(st.binary())
def test_any_bytes_will_do(tmp_path_factory: pytest.TempPathFactory, text: bytes) -> None:
    servers(tmp_path_factory.mktemp("etc"), text)


def test_a_server_counts_once_and_so_many_are_no_resolv_conf(tmp_path: Path) -> None:
    assert set(servers(tmp_path, b"nameserver 10.0.0.1\n" * 1000)[0]) == {"10.0.0.1"}
    with pytest.raises(KernelError, match="65 nameservers, at most 64 are allowed"):
        servers(tmp_path, b"".join(b"nameserver 10.0.0.%d\n" % number for number in range(65)))


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    os.mkfifo(path)
    with pytest.raises(KernelError, match=r"resolv.conf: .*not a regular file"):
        nameservers(str(path))


def test_a_file_that_is_too_large_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(KernelError, match=r"longer than 1048576 bytes"):
        servers(tmp_path, b"#" * (1 << 20) + b"\nnameserver 10.0.0.1\n")
