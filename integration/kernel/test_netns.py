"""Entering a network namespace and coming back, in the real kernel."""

from __future__ import annotations

import ctypes
import os
import resource
import subprocess
import threading
from pathlib import Path

import pytest

from integration.kit.capabilities import without
from integration.kit.namespace import Foreign
from integration.kit.namespace import Namespace as Fresh
from istio_init.errors import KernelError
from istio_init.kernel.host.netns import OWN, Namespace, Pinned, inode
from istio_init.kernel.netlink.router import Rtnetlink
from istio_init.model.routing import Address, PolicyRule
from istio_init.model.rules import Network

SIX = Address(Network(bytes(15) + b"\x06", 128), "lo")
RULE = PolicyRule("ipv4", 0x539, 133)


def here() -> int:
    return os.stat("/proc/thread-self/ns/net").st_ino


def test_a_pinned_path_means_the_same_namespace_whatever_is_put_there(namespace: Fresh, tmp_path: Path) -> None:
    path = tmp_path / "netns"
    path.symlink_to(namespace.path)
    with Pinned(str(path)):
        path.unlink()
        path.symlink_to("/proc/self/ns/net")
        assert inode(str(path)) == os.stat(namespace.path).st_ino
        with Namespace(str(path)):
            assert here() == os.stat(namespace.path).st_ino
        path.unlink()
        with Namespace(str(path)):
            assert here() == os.stat(namespace.path).st_ino
    assert inode(str(path)) == 0


def test_a_path_that_was_pinned_without_a_namespace_has_none(namespace: Fresh, tmp_path: Path) -> None:
    path = tmp_path / "netns"
    with Pinned(str(path)):
        path.symlink_to(namespace.path)
        assert inode(str(path)) == 0
        with pytest.raises(KernelError, match="No such file"), Namespace(str(path)):
            pass


def test_a_namespace_that_can_not_be_looked_at_is_not_gone() -> None:
    def limited() -> list[str]:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
        message = []
        for look in (lambda: Pinned(OWN).__enter__(), lambda: Namespace(OWN).__enter__()):
            with pytest.raises(KernelError) as caught:
                look()
            message.append(str(caught.value))
        return message

    with Fresh() as fresh:
        assert all("Too many open files" in each for each in fresh.forked(limited))


def test_what_is_done_inside_lands_there_and_nowhere_else(namespace: Fresh) -> None:
    before = here()
    with Namespace(namespace.path):
        assert here() == os.stat(namespace.path).st_ino
        Rtnetlink().replace((SIX, RULE))
    assert here() == before
    assert "::6/128" in namespace.run("ip", "-6", "addr", "show", "dev", "lo")
    assert "fwmark 0x539 lookup 133" in namespace.run("ip", "rule")
    assert not {SIX, RULE} & set(Rtnetlink().read())


def test_an_exception_inside_comes_back_too(namespace: Fresh) -> None:
    before = here()
    with pytest.raises(ZeroDivisionError), Namespace(namespace.path):
        _ = 1 // 0
    assert here() == before


def test_no_path_is_the_callers_own() -> None:
    before = here()
    with Namespace(""):
        assert here() == before
    assert here() == before


def test_by_the_path_of_a_process(namespace: Fresh) -> None:
    process = namespace.start("sleep", "60")
    try:
        # ip(8) becomes the command once it is inside.
        while os.stat(f"/proc/{process.pid}/ns/net").st_ino == here():
            pass
        with Namespace(f"/proc/{process.pid}/ns/net"):
            assert here() == os.stat(namespace.path).st_ino
    finally:
        process.kill()
        process.communicate()


def test_one_within_the_other(namespace: Fresh) -> None:
    with Fresh() as second:
        before = here()
        with Namespace(namespace.path):
            with Namespace(second.path):
                assert here() == os.stat(second.path).st_ino
            assert here() == os.stat(namespace.path).st_ino
        assert here() == before


def test_only_the_calling_thread_moves_and_comes_back_to_its_own(namespace: Fresh) -> None:
    main = here()
    observed = []

    def work() -> None:
        namespace.enter()
        with Fresh() as second:
            with Namespace(second.path):
                observed.append(here() == os.stat(second.path).st_ino)
            observed.append(here() == os.stat(namespace.path).st_ino)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert observed == [True, True]
    assert here() == main


def users() -> int:
    return os.stat("/proc/thread-self/ns/user").st_ino


def test_the_owner_of_another_user_namespaces_network_stays_there(namespace: Fresh) -> None:
    home, before = here(), users()

    def work() -> tuple[bool, bool, bool, int]:
        with Namespace(foreign.path, as_owner=True):
            inside = here(), users()
        dumpable = ctypes.CDLL(None).prctl(3, 0, 0, 0, 0)  # PR_GET_DUMPABLE: whether others there may trace it
        return (here(), users()) == inside, inside[0] != home, inside[1] != before, dumpable

    with Foreign() as foreign:
        assert namespace.forked(work) == (True, True, True, 0)


def test_the_owner_of_our_own_comes_back(namespace: Fresh) -> None:
    home, before = here(), users()
    with Namespace(namespace.path, as_owner=True):
        assert here() != home
        assert users() == before
    assert here() == home


def test_a_process_with_threads_can_not_be_the_owner() -> None:
    home, before = here(), users()
    ready = threading.Event()
    other = threading.Thread(target=ready.wait)
    other.start()
    try:
        with Foreign() as foreign:
            message = r"its user namespace can't be joined: Invalid argument: .*no other thread"
            with pytest.raises(KernelError, match=message), Namespace(foreign.path, as_owner=True):
                pass
            assert (here(), users()) == (home, before)
            # For all else it need not.
            with Namespace(foreign.path):
                assert users() == before
            assert here() == home
    finally:
        ready.set()
        other.join()


def test_no_descriptor_is_left_open(namespace: Fresh) -> None:
    before = os.listdir("/proc/self/fd")
    with Namespace(namespace.path):
        pass
    with Namespace(namespace.path, as_owner=True):
        pass
    with pytest.raises(KernelError), Namespace("/proc/self/ns/uts"):
        pass
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/var/run/netns/istio-init-none-such", "No such file or directory (ENOENT); name one that exists"),
        ("/etc/passwd/ns", "Not a directory (ENOTDIR); name one that exists"),
        ("/etc/passwd", "it is not a network namespace"),
        ("/etc", "it is not a network namespace"),
        ("/proc/self/ns/mnt", "it is not a network namespace"),
        ("/var/run/netns/a\0b", "embedded null "),
        ("/var/run/netns/" + "x" * 300, "File name too long (ENAMETOOLONG)"),
    ],
)
def test_what_is_no_namespace_is_said_in_words(path: str, text: str) -> None:
    before = here()
    with pytest.raises(KernelError, match=r"^network namespace '") as caught, Namespace(path):
        pass
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)
    assert here() == before


def test_a_pipe_does_not_make_it_wait(tmp_path: os.PathLike[str]) -> None:
    path = os.path.join(tmp_path, "pipe")
    os.mkfifo(path)
    with pytest.raises(KernelError, match="it is not a network namespace"), Namespace(path):
        pass


def test_without_sys_admin_the_capability_is_named(namespace: Fresh) -> None:
    def work() -> str:
        without("sys_admin")
        with pytest.raises(KernelError) as caught, Namespace(namespace.path):
            pass
        return str(caught.value)

    outcome = namespace.forked(work)
    assert outcome.endswith(
        "(EPERM); entering it needs the capability SYS_ADMIN, here and in the user namespace that owns it"
    )


def test_a_way_back_that_is_barred_is_an_error(namespace: Fresh) -> None:
    def work() -> str:
        with pytest.raises(KernelError) as caught, Namespace(namespace.path):
            without("sys_admin")
        return str(caught.value)

    assert "can't return from it" in namespace.forked(work)


def test_it_works_in_a_bare_interpreter(namespace: Fresh) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[2]); from istio_init.kernel.host.netns import Namespace\n"
        "with Namespace(sys.argv[1]):\n import os; print(os.stat('/proc/thread-self/ns/net').st_ino)\n"
        "print(*sorted(sys.modules))"
    )
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    command = ["/usr/bin/python3", "-I", "-S", "-c", code, namespace.path, root]
    inode, modules = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert int(inode) == os.stat(namespace.path).st_ino
    assert not {"re", "typing", "enum", "dataclasses", "contextlib", "subprocess"} & set(modules.split())
