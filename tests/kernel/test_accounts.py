"""Users and groups out of files such as /etc/passwd."""

from __future__ import annotations

import grp
import os
import pwd
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from istio_init.kernel.host.accounts import LARGEST, group_id, user_id

PASSWD = b"""root:x:0:0:root:/root:/bin/bash
# istio-proxy:x:1:1::/:
malformed
istio-proxy
istio-proxy:x
istio-proxy:x:
istio-proxy:x:minus one:0::/:
istio-proxy:x:-1:0::/:
istio-proxy:x:4294967295:0::/:
istio-proxy:x:99999999999:0::/:
istio-proxy:x:1337:1337::/home/istio-proxy:/bin/sh
istio-proxy:x:1338:1337::/home/istio-proxy:/bin/sh
\xff\xfe:x:7:7::/:
z\xc3\xbcrich:x:8:8::/:
+::::::
largest:x:4294967294:0::/:
no-newline:x:9:9"""


@pytest.fixture
def passwd(tmp_path: Path) -> str:
    path = tmp_path / "passwd"
    path.write_bytes(PASSWD)
    return str(path)


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("root", 0),
        ("istio-proxy", 1337),  # the first line that makes sense
        ("zürich", 8),
        ("\udcff\udcfe", 7),  # as Python hands on what is no UTF-8
        ("largest", 4294967294),
        ("no-newline", 9),
        ("nobody-of-this-name", None),
        ("istio", None),
        ("malformed", None),
        ("root:x", None),
        ("", None),
        ("+", None),
        ("malformed\nistio-proxy", None),
        ("ROOT", None),
        ("\ud800", None),  # can't be written at all
    ],
)
def test_user(passwd: str, name: str, number: int | None) -> None:
    assert user_id(name, passwd) == number


def test_group(tmp_path: Path) -> None:
    path = tmp_path / "group"
    path.write_text("staff:x:50:a,b\nistio:x:1337:\n")
    assert group_id("istio", str(path)) == 1337
    assert group_id("a", str(path)) is None


@pytest.mark.parametrize("path", ["/nonexistent/passwd", "/etc"])
def test_where_there_is_no_file_there_is_no_user(path: str) -> None:
    assert user_id("root", path) is None


def test_this_machines_own_files_agree_with_the_c_library() -> None:
    for user in pwd.getpwall():
        assert user_id(user.pw_name) == pwd.getpwnam(user.pw_name).pw_uid
    for group in grp.getgrall():
        assert group_id(group.gr_name) == grp.getgrnam(group.gr_name).gr_gid


def test_a_large_file(tmp_path: Path) -> None:
    path = tmp_path / "passwd"
    path.write_text("".join(f"user{number}:x:{number}:0:{'.' * 50}:/:\n" for number in range(100_000)))
    assert user_id("user99999", str(path)) == 99999
    assert user_id("user100000", str(path)) is None


@given(
    st.dictionaries(
        st.text(st.characters(codec="utf-8", exclude_characters=":\n"), min_size=1), st.integers(0, 2**32 - 2)
    )
)
def test_every_user_is_found(tmp_path_factory: pytest.TempPathFactory, users: dict[str, int]) -> None:
    path = tmp_path_factory.mktemp("etc") / "passwd"
    path.write_bytes("".join(f"{name}:x:{number}:0::/:\n" for name, number in users.items()).encode())
    for name, number in users.items():
        assert user_id(name, str(path)) == number


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "passwd"
    os.mkfifo(path)
    assert user_id("root", str(path)) is None


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "passwd"
    path.write_bytes(b"root:x:0:0::/:\n" + b"#" * LARGEST)
    assert user_id("root", str(path)) is None
