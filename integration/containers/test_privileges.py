"""The image needs what Istio's injection grants it, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from integration.containers.conftest import Built
from integration.containers.engine import Engine
from integration.containers.owner import CAPABILITIES, Owner, finished

REDIRECT = ("-p", "15001", "-z", "15006", "-u", "1337", "-m", "REDIRECT", "-i", "*", "-x", "", "-b", "*")
TPROXY = (*REDIRECT, "-m", "TPROXY", "--redirect-dns", "--dns-servers", "10.96.0.10")

# <linux/capability.h>
BITS = {"NET_ADMIN": 1 << 12, "NET_RAW": 1 << 13}

STATUS = "print(*(line for line in open('/proc/self/status') if line.startswith(('Cap', 'Seccomp', 'NoNew'))), sep='')"


@pytest.fixture
def owner(engine: Engine, base: str, image: Built) -> Iterator[Owner]:
    """A fresh namespace that has IPv6."""
    with Owner(engine, base, image.tag, ipv6=True) as fresh:
        yield fresh


@pytest.mark.parametrize("arguments", [REDIRECT, TPROXY], ids=["redirect", "tproxy"])
def test_two_capabilities_and_nothing_to_write_on_are_enough(owner: Owner, arguments: tuple[str, ...]) -> None:
    run = owner.init(*arguments, "--enable-ipv6")
    assert run.code == 0, run.log
    for family in ("ipv4", "ipv6"):
        assert "-A ISTIO_OUTPUT" in owner.saved(family)["nat"]


def test_that_is_really_all_it_had(owner: Owner) -> None:
    """Otherwise the test above shows nothing: two capabilities, no new ones, and the engine's seccomp filter."""
    container = owner.started("-IS", "-c", STATUS, entry="/usr/bin/python3")
    facts = dict(line.split(":\t") for line in finished(container).log.splitlines() if line)
    container.remove()
    granted = sum(BITS.values())
    assert {name: int(facts[name], 16) for name in ("CapPrm", "CapEff", "CapBnd")} == dict.fromkeys(
        ("CapPrm", "CapEff", "CapBnd"), granted
    )
    assert (facts["NoNewPrivs"], facts["Seccomp"]) == ("1", "2")


@pytest.mark.parametrize("missing", CAPABILITIES)
def test_a_capability_that_is_missing_is_named(owner: Owner, missing: str) -> None:
    run = owner.init(*REDIRECT, capabilities=tuple(each for each in CAPABILITIES if each != missing))
    assert run.code == 1
    assert f"Operation not permitted: {missing} missing" in run.log.splitlines()[-1], run.log
    assert "-A" not in owner.saved().get("nat", "")


def test_istio_validation_needs_no_right_at_all(owner: Owner) -> None:
    """Istio's container istio-validation, with its CNI plugin: uid 1337, no capability, what was applied is proved."""
    validation = (*REDIRECT, "--run-validation", "--skip-rule-apply")
    failed = owner.init(*validation, "--probe-timeout", "500ms", capabilities=(), user="1337:1337")
    assert failed.code == 126, failed.log
    assert owner.init(*REDIRECT).code == 0
    passed = owner.init(*validation, capabilities=(), user="1337:1337")
    assert passed.code == 0, passed.log


def test_a_dry_run_needs_no_right_at_all(owner: Owner) -> None:
    run = owner.init(*REDIRECT, "--dry-run", capabilities=(), user="65534:65534")
    assert run.code == 0, run.log
    assert "-A ISTIO_OUTPUT" in run.log


def test_another_user_than_root_is_told_what_it_lacks(owner: Owner) -> None:
    """The engine gives added capabilities to root alone; others have them in the bounding set only."""
    run = owner.init(*REDIRECT, user="1337:1337")
    assert run.code == 1
    assert "NET_ADMIN and NET_RAW missing" in run.log.splitlines()[-1], run.log
