"""Who may say what: links are believed from segments and probes of ours, about their own node, and no dead pod's word is anybody's."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from splitinference.controller.cluster_state.figures.series_owners import Directory, host
from splitinference.controller.cluster_state.figures.trusted_samples import Choice, names, of_links, of_nodes, of_pods
from splitinference.controller.cluster_state.shared_snapshot import Sight
from splitinference.controller.ports import Manifest, Sample, Samples, Unusable
from splitinference.settings import Settings
from tests.adapters.promql.test_link_queries import OPERATORS, address, probe_pod, segment_pod

NODES: list[Manifest] = [
    {"metadata": {"name": name}, "status": {"addresses": [{"type": "InternalIP", "address": f"192.168.0.{n}"}]}}
    for n, name in enumerate("ab", 1)
]
PODS = [make(node) for node in "ab" for make in (segment_pod, probe_pod)]
CHOICE = Choice(max, 1e-3, 60, 300)


def labels(**changed: str) -> dict[str, str]:
    """What a scrape of the segment on node a gives."""
    usual = {
        "source": "a",
        "target": "b",
        "segment": "segment-a",
        "namespace": "team",
        "pod": "segment-a",
        "instance": f"{address('segment-a')}:8002",
        "si_by": "segment",
    }
    return {key: value for key, value in {**usual, **changed}.items() if value}


PROBE = {"segment": "", "namespace": OPERATORS, "pod": "probe-a", "instance": f"{address('probe-a')}:8082", "si_by": "probe"}


def believed(said: dict[str, str], directory: Directory | None = None, age: float = 5) -> tuple[bool, tuple[str, ...]]:
    samples = Samples(by_name={"x": Sample(value=1.0, age_seconds=age, labels=said)})
    found = of_links(samples, directory or Directory(NODES, PODS, OPERATORS), CHOICE)
    return "a/b" in found.by_name, found.notes


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"namespace": "", "pod": ""},  # a scrape that adds neither: the address tells
        {"instance": "segment-a:8002"},  # one that names the pod
        {"instance": "a:metrics"},  # or its node
        PROBE,
        {**PROBE, "namespace": "", "pod": ""},
    ],
)
def test_our_own_pods_are_believed_however_they_are_scraped(changed: dict[str, str]):
    assert believed(labels(**changed)) == (True, ())


@pytest.mark.parametrize(
    "changed",
    [
        {"instance": "10.9.9.9:8002"},  # some pod that calls itself a segment
        {"instance": "10.9.9.9:8002", "namespace": "", "pod": ""},
        {"instance": "liar:8002"},
        {"instance": ""},
        {"pod": "liar", "instance": f"{address('segment-a')}:8002"},
        {"instance": f"{address('segment-b')}:8002", "pod": "segment-b", "segment": "segment-b"},  # about a node that it is not on
        {"segment": "segment-b"},
        {"si_by": "probe"},  # a segment that exports what probes do
        {**PROBE, "si_by": "segment"},
        {**PROBE, "namespace": "team"},
    ],
)
def test_others_are_not_and_it_is_said(changed: dict[str, str]):
    found, notes = believed(labels(**changed))
    assert not found
    assert "1 series about links were ignored" in notes[0]


def test_a_pod_that_only_looks_like_a_probe_is_none():
    outside = probe_pod("a")
    outside = {**outside, "metadata": {**outside["metadata"], "namespace": "team"}}
    unowned = segment_pod("a")
    unowned = {**unowned, "metadata": {**unowned["metadata"], "ownerReferences": []}}
    for pod, said in ((outside, labels(**{**PROBE, "namespace": "team"})), (unowned, labels())):
        assert not believed(said, Directory(NODES, [pod], OPERATORS))[0]


def test_the_old_word_of_a_stranger_is_left_out_in_silence():
    """After the operator was started anew, segments of before are strangers."""
    assert believed(labels(pod="gone", segment="gone", instance="10.9.9.9:8002"), age=100) == (False, ())


def test_a_stranger_does_not_blur_what_ours_say():
    ours = Sample(value=10.0, age_seconds=5, labels=labels())
    lie = Sample(value=9000.0, age_seconds=1, labels=labels(instance="10.9.9.9:8002"))
    found = of_links(Samples(by_name={"1": ours, "2": lie}), Directory(NODES, PODS, OPERATORS), CHOICE)
    assert found.by_name["a/b"].value == 10.0


AGELESS = "its age is unknown, so it is not used"


def odd(said: dict[str, str], directory: Directory | None = None) -> tuple[str, ...]:
    samples = Samples(unusable=(Unusable(labels=said, why=AGELESS),))
    return of_links(samples, directory or Directory(NODES, PODS, OPERATORS), CHOICE).notes


def test_what_is_odd_about_a_link_names_its_nodes_and_who_measured_it():
    assert odd(labels()) == (f"link from node a to node b, measured by pod team/segment-a: {AGELESS}",)
    assert odd(labels(**PROBE)) == (f"link from node a to node b, measured by pod {OPERATORS}/probe-a: {AGELESS}",)


def test_links_of_segments_that_are_gone_and_of_strangers_are_not_judged():
    (speaker,) = [s for s in _speakers() if s.name == "segment-a"]
    others = [pod for pod in PODS if pod["metadata"]["name"] != "segment-a"]
    assert odd(labels(), Directory(NODES, others, OPERATORS, {("team", "segment-a"): speaker})) == ()
    assert odd(labels(), Directory(NODES, others, OPERATORS)) == ()
    assert odd(labels(instance="10.9.9.9:8002")) == ()


def test_what_is_odd_about_nodes_and_pods_names_them_and_leaves_out_who_is_not_there():
    directory = Directory(NODES, PODS, OPERATORS)
    of_a = Unusable(labels={"instance": "192.168.0.1:10250", "job": "kubelet"}, why=AGELESS)
    nobody = Unusable(labels={"instance": "10.9.9.9:80", "job": "other"}, why=AGELESS)
    assert of_nodes(Samples(unusable=(of_a, nobody)), directory).notes == (f"node a: {AGELESS}",)
    pod, gone = ({"namespace": "team", "pod": name, **of_a.labels} for name in ("segment-a", "segment-gone"))
    both = tuple(Unusable(labels=each, why=AGELESS) for each in (pod, gone))
    assert of_pods(Samples(unusable=both), directory).notes == (f"pod team/segment-a on node a: {AGELESS}",)


class Links:
    """Metrics that have one link, and nothing else."""

    def __init__(self, said: dict[str, str]) -> None:
        self.said = said

    def __getattr__(self, name: str) -> Any:
        found = {"x": Sample(value=3.0, age_seconds=5, labels=self.said)} if name == "links_mbps" else {}
        return lambda: Samples(by_name=found)


def test_what_a_segment_measured_outlives_it_until_it_is_of_no_use():
    class At:
        seconds = 0.0

        def now(self) -> datetime:
            return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.seconds)

    clock, sight = At(), Sight(Settings(link_max_age_seconds=300))
    for seconds, pods, known in ((0, PODS, True), (60, [], True), (290, [], True), (400, [], False)):
        clock.seconds = seconds
        found = sight.measured(("team", "chat"), (NODES, pods), Links(labels()), clock)
        assert ("a/b" in found.links_mbps.by_name) is known, seconds


def test_the_address_of_a_segment_that_is_gone_may_be_anothers():
    (speaker,) = [s for s in _speakers() if s.name == "segment-a"]
    past = {("team", "segment-a"): speaker}
    heir = {**segment_pod("b"), "status": {"podIP": address("segment-a")}}
    assert believed(labels(), Directory(NODES, [], OPERATORS, past))[0]
    assert not believed(labels(), Directory(NODES, [heir], OPERATORS, past))[0]


def _speakers() -> Any:
    from splitinference.controller.cluster_state.figures.series_owners import speakers_of

    return speakers_of(PODS, OPERATORS)


def test_use_of_a_segment_is_what_its_own_node_says():
    def sample(value: float, **said: str) -> Sample:
        return Sample(value=value, age_seconds=5, labels={"namespace": "team", "pod": "segment-a", **said})

    def read(*several: Sample) -> dict[str, float | None]:
        found = of_pods(Samples(by_name=dict(zip("123", several, strict=False))), Directory(NODES, PODS, OPERATORS))
        return {name: one.value for name, one in found.by_name.items()}

    kubelet, lie = sample(0.5, instance="192.168.0.1:10250"), sample(0.0, instance="10.9.9.9:80")
    assert read(kubelet, lie) == {"team/segment-a": 0.5}
    assert read(sample(0.5, instance="192.168.0.2:10250")) == {}, "another node's kubelet"
    assert read(lie, sample(0.2, instance="10.9.9.8:80")) == {}, "two, and nobody vouches for either"
    assert read(Sample(value=1.0, age_seconds=5, labels={"namespace": "other", "pod": "x", "node": "a"})) == {}


@pytest.mark.parametrize(
    ("instance", "found"),
    [("a:1", "a"), ("[::1]:9100", "::1"), ("::1", "::1"), ("a", "a"), ("", ""), ("10.0.0.1:9100", "10.0.0.1"), ("[x", "x")],
)
def test_the_host_of_an_instance(instance: str, found: str):
    assert host(instance) == found


def test_long_lists_are_cut():
    assert names([f"n{n}" for n in range(9)]) == "n0, n1, n2, n3, n4 and 4 more"
