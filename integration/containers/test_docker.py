"""An app's container owns the namespace, ours joins it, applies and ends; the rules are read from outside."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from integration.containers.conftest import Built
from integration.containers.engine import ROOT, Engine
from integration.containers.owner import Owner, finished
from integration.kit.program import VERBS

ALL = ("-p", "15001", "-z", "15006", "-u", "1337", "-m", "REDIRECT", "-i", "*", "-x", "", "-b", "*")
ARTICLE = (*ALL, "-d", "15090,15020")
OTHER = (*ALL, "-d", "15090,15020,9090")


@pytest.fixture
def owner(engine: Engine, base: str, image: Built) -> Iterator[Owner]:
    """A fresh namespace, without IPv6 as Docker gives it."""
    with Owner(engine, base, image.tag) as fresh:
        yield fresh


def preview(*arguments: str) -> str:
    """What a dry run outside of any container prints."""
    command = [sys.executable, "-m", "istio_init", *arguments, "--dry-run", "--no-enable-ipv6"]
    text = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return "".join(line for line in text.splitlines(keepends=True) if not line.startswith("#"))


def test_what_stands_is_what_the_dry_run_says(owner: Owner) -> None:
    run = owner.init(*ARTICLE)
    assert run.code == 0, run.log
    assert owner.saved() == {"nat": preview(*ARTICLE)}


def test_a_restarted_init_container_changes_nothing(owner: Owner) -> None:
    container = owner.started(*ARTICLE)
    assert finished(container).code == 0
    before = owner.inside("iptables-legacy-save", "-c", "-t", "nat")
    container.restart()
    run = finished(container)
    container.remove()
    assert run.code == 0, run.log
    assert "in place" in run.log.splitlines()[-1]
    assert _rules(owner.inside("iptables-legacy-save", "-c", "-t", "nat")) == _rules(before)


def test_other_flags_fail_and_change_nothing_unless_told_to_reconcile(owner: Owner) -> None:
    assert owner.init(*ARTICLE).code == 0
    before = owner.saved()
    refused = owner.init(*OTHER)
    assert refused.code == 1
    assert "9090" in refused.log
    assert owner.saved() == before
    assert owner.init(*OTHER, "--reconcile").code == 0
    assert owner.saved() == {"nat": preview(*OTHER)}
    assert owner.init(*OTHER).code == 0


def test_rules_outlive_the_init_container_and_end_with_the_namespace(engine: Engine, owner: Owner) -> None:
    container = owner.started(*ARTICLE)
    assert finished(container).code == 0
    container.remove()
    assert owner.saved() == {"nat": preview(*ARTICLE)}
    owner.container.restart(timeout=0)
    owner.container.reload()
    assert owner.saved() == {}
    run = owner.init(*ARTICLE)
    assert run.code == 0, run.log
    assert owner.saved() == {"nat": preview(*ARTICLE)}


def test_cleaning_takes_all_of_ours_and_nothing_else(owner: Owner) -> None:
    foreign = "-A PREROUTING -p tcp -m tcp --dport 4242 -j RETURN"
    owner.inside("iptables-legacy", "-t", "nat", *foreign.split())
    before = owner.saved()
    assert owner.init(*ARTICLE).code == 0
    assert owner.saved() != before
    for _ in range(2):
        run = owner.init("istio-clean-iptables")
        assert run.code == 0, run.log
        assert owner.saved() == before


def test_many_at_once_end_in_one_plan(owner: Owner) -> None:
    """On a read-only file system there is no lock file to share; they lock the namespace itself."""
    codes: list[int] = []
    threads = [threading.Thread(target=lambda: codes.append(owner.init(*ARTICLE).code)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes == [0] * 6
    assert owner.saved() == {"nat": preview(*ARTICLE)}


def test_docker_tells_the_exit_code_of_each_kind_of_failure(owner: Owner) -> None:
    assert owner.init(*ARTICLE, "-p", "70000").code == 1
    assert owner.init(*ARTICLE, "--no-such-flag").code == 255
    assert owner.init(*ARTICLE, capabilities=()).code == 1
    validation = ("--run-validation", "--skip-rule-apply", "--probe-timeout", "200ms")
    assert owner.init(*ARTICLE, *validation, user="1337").code == 126


def explained(identity: str) -> tuple[int, str]:
    """The exit code and output of `istio-init explain` about what a container's namespace holds."""
    # The container has no network but lo: --interface names the interface that a pod would have.
    question = [
        "explain",
        "--outbound",
        "--to",
        "10.1.2.3:443",
        "--interface",
        "eth0",
        "--live",
        "--container",
        identity,
    ]
    command = [*VERBS, *question]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_a_container_is_explained_by_its_id(owner: Owner) -> None:
    identity = str(owner.container.id)
    code, text = explained(identity)
    assert (code, "no rules" in text) == (0, True), text
    assert owner.init(*ARTICLE).code == 0
    for arguments in (identity, identity[:12], f"docker://{identity}"):
        code, text = explained(arguments)
        assert code == 0, text
        assert "goes to Envoy's outbound listener, 127.0.0.1:15001, because ISTIO_OUTPUT rule" in text
    owner.container.stop(timeout=0)
    code, text = explained(identity)
    assert code == 1
    assert text.endswith("no process here is in such a control group; is it running?\n")


def _rules(saved: str) -> list[str]:
    return [line for line in saved.splitlines() if line.startswith("[")]
