"""How all tests are run: nothing passes or fails by how busy the machine is.

In CI hypothesis tries the same examples in every run, so that a change is judged by what it changes; elsewhere each run
tries others. Of the workers that pytest-xdist starts, each takes one test after the other, or a group of tests that
share what takes long to make.
"""

from __future__ import annotations

import os
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadScopeScheduling

if TYPE_CHECKING:
    from xdist.remote import Producer

# Tests that one worker runs, beside the files with a fixture of module scope: they share an engine and an image, or
# what the first of them computes. Where the fixture has parameters, the expression's group keeps them apart.
GROUPS = (
    # Two nodes take about the same time; of the two other files one needs none, and one a node with a newer runtime.
    r"integration/cluster/test_(?:ebpf|istio|moments|restarts)\.py",
    r"integration/cluster/test_(?!istio_plugin|user_namespaces)",
    r"integration/containers/",
    r"integration/envoy/test_calls\.py::.*\[(\w+)",
    r"integration/kernel/test_kernels\.py::.*?(\w+)\]",
    r"integration/traffic/test_(mutations|simulator)\.py::.*\[(\w+)",
    r"tests/draw/test_page_scripts\.py",
    r"tests/project/test_contributing\.py",
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
    "tests/draw/test_page_scripts.py",
    "tests/envoy/test_dump.py::test_any_change_of_a_dump",
    "tests/envoy/test_fit.py::test_a_planted_misfit",
    "tests/inject/test_injector.py::test_manifests_as_tools_write_them",
    "tests/inject/test_injector.py::test_yaml_of_every_style",
    "tests/options/test_manifest.py::test_arguments_mean_the_options",
    "tests/options/test_manifest.py::test_the_property_knows_every_option",
    "tests/project/test_fuzz.py",
    "tests/verify/test_proof.py::test_planted_faults",
    "tests/verify/test_proof.py::test_the_claims_alone",
)

settings.register_profile(
    "unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize="CI" in os.environ
)
settings.load_profile("unhurried")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Groups come first, since they take longest; and coverage looks away where it would cost most."""
    items.sort(key=lambda item: group_of(item.nodeid) == item.nodeid)
    for item in items:
        if item.nodeid.startswith(UNCOVERED):
            item.add_marker(pytest.mark.no_cover)


class Grouped(LoadScopeScheduling):
    """Hands a test at a time to a free worker, a group as a whole."""

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)


@cache
def group_of(nodeid: str) -> str:
    """The group that a test belongs to; its own name where it belongs to none."""
    for pattern in GROUPS:
        if group := re.match(pattern, nodeid):
            return " ".join((pattern, *group.groups()))
    file = nodeid.partition("::")[0]
    return file if shares_a_fixture(file) else nodeid


@cache
def shares_a_fixture(file: str) -> bool:
    """Whether the tests of a file share a fixture, which otherwise each worker would make for itself."""
    return '@pytest.fixture(scope="module"' in Path(__file__).parent.joinpath(file).read_text(encoding="utf-8")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    """Have xdist hand the tests out as Grouped does (its own xdist_group needs a pytest before 9.2)."""
    return Grouped(config, log)
