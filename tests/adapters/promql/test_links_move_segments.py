"""A link that gets slow, the whole way: what probes and segments export, a real Prometheus, the queries, the passes, the move."""

import itertools
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from splitinference.adapters.promql.prometheus import PrometheusMetrics
from splitinference.controller.ports import Metrics
from splitinference.controller.reconcile.reconcile import Reconciler
from splitinference.settings import Settings
from tests.adapters.promql.test_link_queries import OPERATORS, address, probe, probe_pod, segment
from tests.adapters.real_prometheus import serving_series
from tests.controller.world import SETTINGS, World, a_body, a_node
from tests.core.planning import Exhaustive

NODES = ("a", "b", "c")
Series = list[str]


@dataclass
class LinksOf:
    """The world's metrics, with links as a real Prometheus has them."""

    world: World
    links: PrometheusMetrics

    def links_mbps(self) -> Any:
        return self.links.links_mbps()

    def links_rtt_ms(self) -> Any:
        return self.links.links_rtt_ms()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.world, name)


@dataclass
class Story:
    """A world whose links are those that a server has, whichever is asked just now."""

    world: World
    folder: Path

    def __post_init__(self) -> None:
        for node in NODES:
            pod = probe_pod(node)
            self.world.objects["Pod", OPERATORS, pod["metadata"]["name"]] = dict(pod)
        self.links = LinksOf(self.world, PrometheusMetrics(SETTINGS))
        self.restart()

    def restart(self) -> None:
        """The operator begins anew, and knows what is in the cluster."""
        self.reconciler = Reconciler(replace(self.world.ports(), metrics=cast(Metrics, self.links)), SETTINGS, Exhaustive())

    def passes(self, series: Series, count: int = 12) -> None:
        """So many passes, five seconds apart."""
        self.folder.mkdir()
        with serving_series(series, self.folder) as url:
            self.links.links = PrometheusMetrics(Settings(prometheus_url=url))
            for _ in range(count):
                self.reconciler.reconcile("team", "chat")
                self.world.step(5.0)
        self.folder = self.folder.with_name(self.folder.name + "-then")

    def nodes(self) -> list[str]:
        """Nodes of the stages, in order."""
        return [segment["node"] for segment in self.world.status()["plan"]["segments"]]

    def reasons(self) -> list[str]:
        return [decision["reason"] for decision in self.world.status()["decisions"]]


def seen_by_segment(story: Story, link: tuple[str, str], figure: str, value: float, age: float) -> Series:
    """What the segment on the link's first node exports of it."""
    pods = [pod for (kind, ns, _), pod in story.world.objects.items() if (kind, ns) == ("Pod", "team")]
    (pod,) = [pod for pod in pods if pod["spec"].get("nodeName") == link[0] and pod["metadata"]["name"].startswith("chat-0")]
    name = pod["metadata"]["name"]
    return [line.replace(address(name), pod["status"]["podIP"]) for line in segment(*link, figure, value, age=age, pod=name)]


def probed(slow: tuple[str, str] | None = None, mbps: float = 1.0, age: float = 5) -> Series:
    """What the probes of all nodes say when all links are good, but one."""
    found: Series = []
    for source, target in itertools.permutations(NODES, 2):
        found += probe(source, target, "mbps", mbps if (source, target) == slow else 940, age=age)
        found += probe(source, target, "rtt_ms", 0.3, age=age)
    return found


@pytest.fixture
def story(tmp_path: Path) -> Story:
    """Two segments serve, all links are measured and good, and the cooldown is over."""
    world = World({name: a_node(name, mib=310) for name in NODES})
    world.add(a_body())
    told = Story(world, tmp_path / "prometheus")
    told.passes(probed())
    assert len(told.nodes()) == 2
    assert told.reasons() == ["NoPlan"]
    world.now += timedelta(seconds=120)
    return told


def serving_link(story: Story) -> tuple[str, str]:
    first, second = story.nodes()
    return first, second


def test_links_that_stay_good_move_nothing(story: Story):
    before = story.nodes()
    story.passes(probed(), 24)
    assert story.nodes() == before
    assert story.reasons() == ["NoPlan"]


def test_a_serving_link_that_probes_find_slow_is_left_once_and_not_taken_again(story: Story):
    slow = serving_link(story)
    story.passes(probed(slow))
    newest = story.world.status()["decisions"][0]
    assert newest["reason"] == "LinkDegraded"
    assert f"the link after stage 0 on {slow[0]} takes" in newest["message"]
    assert serving_link(story) != slow
    assert story.world.condition("Ready")["status"] == "True"
    after = story.nodes()
    story.world.now += timedelta(seconds=120)
    story.passes(probed(slow), 60)
    assert story.nodes() == after, "it flapped"
    assert len(story.reasons()) == 2


def test_a_serving_link_that_only_its_own_traffic_finds_slow_is_left(story: Story):
    slow = serving_link(story)
    story.passes(seen_by_segment(story, slow, "mbps", 1.0, 2) + seen_by_segment(story, slow, "rtt_ms", 0.8, 1))
    assert story.reasons()[0] == "LinkDegraded"
    assert serving_link(story) != slow


def test_the_moment_that_traffic_left_a_slow_link_it_is_not_forgotten(story: Story):
    """Nobody measures it any more; until a probe comes round it counts as it was."""
    slow = serving_link(story)
    seen = seen_by_segment(story, slow, "mbps", 1.0, 2)
    story.passes(seen)
    after = story.nodes()
    assert after != list(slow)
    story.world.now += timedelta(seconds=120)
    story.passes(probed(age=250) + [line.removesuffix(" 2") + " 90" if "_age_" in line else line for line in seen], 40)
    assert story.nodes() == after


def test_a_restart_of_the_operator_does_not_forget_what_a_gone_segment_measured(story: Story):
    slow = serving_link(story)
    seen = seen_by_segment(story, slow, "mbps", 1.0, 2)
    story.passes(seen)
    after = story.nodes()
    assert after != list(slow)
    story.world.now += timedelta(seconds=120)
    story.restart()
    story.passes(probed(age=250) + [line.removesuffix(" 2") + " 90" if "_age_" in line else line for line in seen], 40)
    assert story.nodes() == after


@pytest.mark.parametrize("age", [2000, None], ids=["old", "none"])
def test_a_link_of_which_nothing_fresh_is_known_moves_nothing(story: Story, age: float | None):
    before = story.nodes()
    story.passes(["up 1"] if age is None else probed(serving_link(story), age=age), 24)
    assert story.nodes() == before
    assert story.reasons() == ["NoPlan"]
