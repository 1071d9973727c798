"""Leaves the tests on a real SLURM out where there is none, and says so in the summary."""

import pytest

from tests.cluster import slurm

collect_ignore = ["test_slurm.py"] if slurm.missing() else []


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Names what is missing, unless slow tests are left out anyway."""
    if slurm.missing() and "not slow" not in config.option.markexpr:
        lacking = ", ".join(slurm.missing())
        terminalreporter.write_line(
            f"launch/slurm.sbatch was not tried on a real SLURM: no {lacking} (docs/clusters.md)"
        )
