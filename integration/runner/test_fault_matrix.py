"""A representative part of scripts/faults: faults spread over all system calls of every kind of run."""

from __future__ import annotations

import pytest

from integration.kit.fault_matrix import FAULTS, Matrix, Scenario, scenarios

# How many faults of each scenario: each kind, at calls from the first to the last.
SAMPLE = 6


@pytest.mark.parametrize("scenario", scenarios(), ids=lambda scenario: scenario.name)
def test_a_run_ends_in_a_state_that_it_reports(scenario: Scenario) -> None:
    matrix = Matrix(scenario)
    faults = [(*call, fault) for call in matrix.calls for fault in FAULTS]
    # A step that has no divisor in common with the number of kinds meets each of them.
    step = max(1, len(faults) // SAMPLE) | 1
    step += 2 if step % len(FAULTS) == 0 else 0
    for call, number, fault in faults[::step]:
        result = matrix.result(call, number, fault)
        assert not result.problem, f"{call} {number} {fault}: {result}"
