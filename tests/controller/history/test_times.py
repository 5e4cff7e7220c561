"""Times from the future in a status keep nothing waiting."""

from datetime import UTC, datetime, timedelta
from typing import Any

from splitinference.controller.api.conditions import stamp
from splitinference.controller.history.adaptation_state import Failures, Recall
from splitinference.controller.kube_values.clock_skew import not_after
from splitinference.controller.plan_io.columns import observed
from splitinference.core.decide.base.policy import Memory
from splitinference_protocol.report import ObservedTraffic
from tests.controller.objects import NAMESPACE
from tests.controller.stories import serving

NOW = datetime(2026, 1, 1, tzinfo=UTC)
FUTURE, PAST = NOW + timedelta(days=36500), NOW - timedelta(minutes=1)


def test_what_is_past_is_kept_as_it_is():
    recall = Recall(moves=(PAST,), failures={"a": Failures(count=1, first=PAST, last=NOW, why="x", key="k")})
    assert not_after(recall, NOW) is recall


def test_each_time_after_now_is_now_wherever_it_is():
    recall = Recall(
        moves=(PAST, FUTURE),
        failures={"a": Failures(count=3, first=PAST, last=FUTURE, why="x", key="k")},
        memory=Memory(reviewed=FUTURE, tried_at=FUTURE),
    )
    found = not_after(recall, NOW)
    assert found.moves == (PAST, NOW)
    assert found.failures["a"].last == NOW
    assert (found.memory.reviewed, found.memory.tried_at) == (NOW, NOW)
    assert not found.quarantined(NOW + timedelta(minutes=11)), "nor is a node left out for a hundred years"


def test_a_time_without_a_zone_is_in_utc():
    assert not_after(Recall(moves=(PAST.replace(tzinfo=None),)), NOW).moves == (PAST,)


def test_figures_are_renewed_after_a_time_from_the_future():
    traffic = ObservedTraffic(requests=1)
    for time in (stamp(FUTURE), "2126-01-01T00:00:00", "nonsense"):
        before: dict[str, Any] = {"revision": "r", "time": time}
        assert observed(before, traffic, "r", NOW)["time"] == stamp(NOW)


def test_a_pass_mends_what_the_status_remembers():
    world, operator = serving()
    status = world.objects["SplitInference", NAMESPACE, "chat"]["status"]
    status.setdefault("adaptation", {})["moves"] = [stamp(FUTURE)]
    operator.look()
    assert world.status()["adaptation"]["moves"] == [stamp(world.now)]
