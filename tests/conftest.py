"""What holds for all tests: one Hypothesis profile, and how long a test may take."""

import pytest
from hypothesis import HealthCheck, settings

from tests.examples import ASKED, examples

_SLOW = (HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much, HealthCheck.large_base_example)
_FIXTURES = (HealthCheck.function_scoped_fixture,)  # those of these tests (capsys, for example) keep nothing from one example to the next
_OFF = (*_SLOW, *_FIXTURES)
_LONG_SECONDS = 3600

# No deadline, as a core may be busy. The same examples each time, so that a change is judged by what it changes: others only on demand.
settings.register_profile("suite", parent=examples(100), deadline=None, derandomize=ASKED is None, suppress_health_check=_OFF)
settings.load_profile("suite")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests with clusters and engines may take longer than pyproject.toml says of the others."""
    for item in items:
        if any(item.get_closest_marker(name) for name in ("cluster", "engine", "long")) and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(_LONG_SECONDS))
