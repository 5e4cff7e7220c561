"""A simulated cluster behind the page: the same document as of a cluster, and a segment that moves in it."""

import pytest

from splitinference.simulation.traces.synthetic import GENERATORS
from splitinference.ui.origins.simulated import Simulated
from splitinference.ui.questions.asked import UnanswerableError
from tests.controller.stories import serving
from tests.ui.pages import document_from


def simulated(name: str = "utilization-step", hours: float = 1) -> Simulated:
    generator = GENERATORS[name]
    return Simulated(generator.make(generator.nodes, hours * 3600, 1), speed=0)


def test_documents_of_simulations_and_clusters_have_the_same_fields():
    source = simulated()
    source.advance(60)
    played, real = source.read(), document_from(serving()[0])
    for kind in ("nodes", "resources"):
        (mine, *_), (theirs, *_) = played.items(kind).values(), real.items(kind).values()
        assert set(mine) == set(theirs), kind
    (mine,), (theirs,) = played.resources.values(), real.resources.values()
    segment, other = (item["plan"]["pipelines"][0]["segments"][0] for item in (mine, theirs))
    assert set(segment) == set(other)


def test_a_segment_moves_while_the_old_one_serves():
    source = simulated()
    seen, moving = set(), []
    for _ in range(360):
        source.advance(10)
        (item,) = source.read().resources.values()
        planned = tuple(s["node"] for s in item["plan"]["pipelines"][0]["segments"])
        seen.add(planned)
        if item["transition_from"]:
            moving.append(item)
            serves = tuple(s["node"] for s in item["serving"][0]["segments"])
            assert serves != planned
            assert serves in seen
    assert len(seen) == 2
    assert moving
    assert item["decisions"][0]["transition"] == "migration"
    assert "utilization" in item["decisions"][0]["message"] or "used by others" in item["decisions"][0]["message"]


def test_it_ends_and_says_so():
    source = simulated(hours=0.1)
    source.advance(1e6)
    assert source.seconds == pytest.approx(360)
    assert "The simulation has ended." in source.read().notes


def test_time_passes_by_the_clock(monkeypatch: pytest.MonkeyPatch):
    source = simulated()
    source.speed = 10.0
    now = [source._clock + 6]
    monkeypatch.setattr("splitinference.ui.origins.simulated.time.monotonic", lambda: now[0])
    source.read()
    assert source.seconds == pytest.approx(60)


def test_there_is_one_resource():
    with pytest.raises(UnanswerableError):
        simulated().basis("team/chat")
