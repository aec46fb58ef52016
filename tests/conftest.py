"""What every test may ask for, and a word at the end about what was skipped and why."""

from __future__ import annotations

import collections
import os
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))  # `import kit.masks` from any test, never the product

from hypothesis import HealthCheck, settings

# Derandomised: the same cases on every machine. No deadline: machines differ and are shared.
settings.register_profile("house", derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
settings.load_profile("house")


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """A generator seeded by the test's own name: independent of order and selection."""
    return np.random.default_rng(sum(request.node.nodeid.encode()))


@pytest.fixture(scope="session")
def isa() -> str:
    """The level the engines use in this run (SPARSE_VDIT_ISA may have lowered it)."""
    import sparse_vdit

    return sparse_vdit.build_info()["isa"]


def pytest_report_header(config: pytest.Config) -> str:
    import sparse_vdit

    info = sparse_vdit.build_info()
    wanted = os.environ.get("SPARSE_VDIT_ISA", "")
    return f"sparse_vdit {info['version']}: isa {info['isa']} (best {info['isa_best']}), SPARSE_VDIT_ISA={wanted}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reasons = collections.Counter(
        str(report.longrepr[-1]) for report in terminalreporter.stats.get("skipped", [])
    )
    for reason, count in reasons.most_common():
        terminalreporter.write_line(f"skipped {count}: {reason}")
