"""What every pod waits for must not grow unnoticed: imports, processes, files read, and instructions are counted."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from integration.kit import hot_path
from integration.kit.hot_path import SCENARIOS, Installed
from scripts.benchmark import growth

# How many more instructions than recorded are no reason to look: other releases of Python differ by less.
MARGIN = 1.15
# By how much the second half may cost more than the first; were something quadratic, it would be threefold.
GROWTH = 1.25


@pytest.fixture(scope="module")
def installed() -> Iterator[Installed]:
    with Installed() as program:
        yield program


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_imports_nothing_that_is_not_listed(installed: Installed, scenario: str) -> None:
    listed = hot_path.recorded_modules()[scenario]
    # What a listed module of the standard library imports in turn differs between releases of Python.
    library = sorted(module for module in listed if not module.startswith(("bundle", "istio_init")))
    allowed = listed | hot_path.imported_by(f"import {', '.join(library)}")
    imported = installed.imports(scenario)
    added = {module: importer for module, importer in imported.items() if module not in allowed}
    # Those that only came along with another one are not worth a name.
    named = ", ".join(
        f"{module} (by {importer or 'a function'})" for module, importer in added.items() if importer not in added
    )
    assert not added, (
        f"{scenario} now imports {named}; if each start is to pay for it: python -m integration.kit.hot_path"
    )
    gone = sorted(module for module in listed - imported.keys() if module not in library)
    assert not gone, f"{scenario} no longer imports {', '.join(gone)}: python -m integration.kit.hot_path"


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_image_runs_the_modules_that_are_listed(installed: Installed, scenario: str) -> None:
    listed = {module for module in hot_path.recorded_modules()[scenario] if module.startswith("istio_init")}
    assert installed.run_modules(scenario) == listed


def test_a_cleanup_of_own_rules_does_not_look_for_those_of_istios_releases(installed: Installed) -> None:
    """Which takes a third of its time: each pod's end waits for it where the CNI plugin made the rules."""
    modules = installed.modules_of_cleanup()
    assert "istio_init.runner.cleanup" in modules
    assert "istio_init.planning.earlier_releases" not in modules


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_starts_no_process_and_reads_no_source(installed: Installed, scenario: str) -> None:
    calls = installed.calls(scenario, "execve,?execveat,?clone,?clone3,?fork,?vfork,openat,?open")
    opened = [call for call in calls if "open" in call.split("(")[0]]
    assert len(calls) - len(opened) == 1, f"beside its own execve: {[call for call in calls if call not in opened]}"
    assert not [call for call in opened if '.py"' in call]


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_takes_no_more_instructions_than_recorded(installed: Installed, scenario: str) -> None:
    flags, before = SCENARIOS[scenario]
    ratio = installed.instructions(flags, in_place=before) / hot_path.bare_instructions()
    recorded = hot_path.recorded_instructions()[scenario]
    assert ratio < recorded * MARGIN, f"{scenario}: {ratio:.2f} times an empty program's, {recorded} are recorded"


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("kind", ["ports, IPv4", "CIDRs, IPv4"])
def test_grows_linearly(installed: Installed, kind: str, in_place: bool) -> None:
    none, once, twice = (
        installed.instructions(growth.arguments(kind, count), in_place=in_place) for count in (0, 500, 1_000)
    )
    assert twice - once < (once - none) * GROWTH
