"""How all tests are run: nothing passes or fails by how busy the machine is.

In CI hypothesis tries the same examples in every run, so that a change is judged by what it changes; elsewhere each run
tries others. Of the workers that pytest-xdist starts, each takes one test after the other, but for those of GROUPS.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadScopeScheduling

if TYPE_CHECKING:
    from xdist.remote import Producer

# Tests that one worker runs, by how their names begin: they share an engine and an image, one boot, a browser, or count
# together.
GROUPS = (
    "integration/cluster/",
    "integration/containers/",
    "integration/kernel/test_missing_modules.py",
    "integration/traffic/test_mutations.py",
    "integration/draw/test_html.py",
    "integration/traffic/test_simulator.py",
)

# Tests that go the same few lines thousands of times: to look which they are would make them take up to four times as
# long, and tell of no line that others do not.
UNCOVERED = (
    "integration/cluster/",
    "integration/containers/",
    "integration/runner/test_backends.py",
    "integration/kernel/test_cases.py",
    "integration/traffic/test_mutations.py",
    "integration/inspect/test_plan.py",
    "integration/kernel/test_properties.py",
    "integration/traffic/test_reconcile_traffic.py",
    "integration/traffic/test_simulator.py",
    "integration/traffic/test_traffic",
    "tests/project/test_fuzz.py",
    "tests/verify/test_proof.py::test_planted_faults",
    "tests/verify/test_proof.py::test_the_claims_alone",
)

settings.register_profile(
    "unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize="CI" in os.environ
)
settings.load_profile("unhurried")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Have coverage look away where it would cost most."""
    for item in items:
        if item.nodeid.startswith(UNCOVERED):
            item.add_marker(pytest.mark.no_cover)


class Grouped(LoadScopeScheduling):
    """Hands a test at a time to a free worker, a group as a whole."""

    def _split_scope(self, nodeid: str) -> str:
        return next((group for group in GROUPS if nodeid.startswith(group)), nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    """Have xdist hand the tests out as Grouped does (its own xdist_group needs a pytest before 9.2)."""
    return Grouped(config, log)
