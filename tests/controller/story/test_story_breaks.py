"""Stories of what breaks: nodes, pods, processes, Services and routes that go, and how each is mended."""

from splitinference_protocol.report import Failing
from tests.controller.stories import busy_node, reasons, serving
from tests.controller.world import NAMESPACE, Operator, World, a_body, a_node


def test_a_lost_node_is_replaced_at_once():
    world, operator = serving()
    node = busy_node(world)
    world.nodes[node]["status"]["conditions"][0]["status"] = "Unknown"
    world.step(1)
    operator.run(6)
    assert f"{node}[" not in world.placement()
    assert reasons(world)[0] == "NodeLost"
    assert f"on {node}, which cannot be used: not ready" in world.status()["decisions"][0]["message"]
    assert world.condition("Ready")["status"] == "True"


def test_a_deleted_pod_is_made_again_where_it_was():
    world, operator = serving()
    before, victim = world.placement(), world.segments()[0]
    del world.objects["Pod", NAMESPACE, victim]
    operator.look()
    assert world.condition("Ready")["status"] == "False"
    assert victim in world.condition("Ready")["message"]
    operator.run(4)
    assert world.placement() == before
    assert world.condition("Ready")["status"] == "True"
    assert len(world.routes_seen) == 1


def test_a_process_that_answers_with_errors_is_replaced_though_the_kubelet_says_ready():
    world, operator = serving()
    victim = world.segments()[0]
    uid = world.objects["Pod", NAMESPACE, victim]["metadata"]["uid"]
    world.dead.add(victim)
    world.failing[victim] = Failing(since=world.now, code="next_hop_failed")
    assert operator.look().again_seconds == 1.0, "what is in doubt is looked at again soon"
    for _ in range(6):
        operator.run(1, seconds=2.0)
    world.dead.clear()
    world.failing.clear()
    operator.run(4)
    assert world.objects["Pod", NAMESPACE, victim]["metadata"]["uid"] != uid
    assert world.condition("Ready")["status"] == "True"


def test_a_segment_out_of_reach_goes_elsewhere_before_its_node_is_said_to_be_lost():
    world, operator = serving()
    node, victim = busy_node(world), world.segments()[-1]
    world.gone.add(victim)
    world.failing[victim] = Failing(since=world.now, code="next_hop_failed")
    for _ in range(4):
        operator.run(1, seconds=2.0)
    assert reasons(world)[0] == "SegmentFailed"
    assert "cannot be reached" in world.status()["decisions"][0]["message"]
    assert f"{node}[" not in world.placement()
    world.failing.clear()
    operator.run(6)
    assert world.condition("Ready")["status"] == "True"


def test_a_segment_that_keeps_failing_goes_elsewhere():
    world, operator = serving()
    node, victim = busy_node(world), world.segments()[-1]
    for _ in range(40):
        pod = world.objects.get(("Pod", NAMESPACE, victim))
        if pod is not None and pod["status"]["phase"] == "Running":
            pod["status"] = {"phase": "Failed", "reason": "Evicted", "message": "out of ephemeral storage", "conditions": []}
        operator.run(1)
    assert f"{node}[" not in world.placement()
    assert "SegmentFailed" in reasons(world)
    message = next(d["message"] for d in world.status()["decisions"] if d["reason"] == "SegmentFailed")
    assert "3 failures" in message
    assert "Evicted: out of ephemeral storage" in message


def test_a_refused_pod_is_said_and_what_serves_serves_on():
    world, operator = serving()
    world.refuse.add("Pod")
    world.busy[busy_node(world)] = 0.93
    operator.run(12)
    assert "exceeded quota" in world.condition("Progressing")["message"]
    assert world.condition("Ready")["status"] == "True"
    assert len([e for e in world.events if e[1] == "Refused"]) == 1
    assert operator.look().again_seconds == 32.0, "a quota is not asked every second"
    world.refuse.clear()
    operator.run(6)
    assert world.condition("Progressing")["status"] == "False"


def test_a_service_that_was_deleted_is_made_again():
    world, operator = serving()
    name = world.segments()[0]
    del world.objects["Service", NAMESPACE, name]
    operator.look()
    assert ("Service", NAMESPACE, name) in world.objects


def test_a_route_that_was_deleted_is_written_again():
    world, operator = serving()
    del world.objects["ConfigMap", NAMESPACE, "chat-route"]
    operator.run(2)
    assert world.serving() == [s["name"] for s in world.status()["plan"]["segments"]]


def test_what_serves_gives_way_when_its_other_half_is_lost_and_there_is_no_room_beside_it():
    """b is lost. All layers fit on a, but only once the half that a holds is gone; it serves nobody any more."""
    world = World({"a": a_node("a", mib=560), "b": a_node("b", mib=310)})
    world.tenant("a", mib=200)
    world.add(a_body())
    operator = Operator(world)
    operator.run(6)
    assert sorted(s["node"] for s in world.status()["plan"]["segments"]) == ["a", "b"]
    assert world.gateway_node() == "a"
    world.tenant_gone("a")
    world.nodes["b"]["status"]["conditions"][0]["status"] = "Unknown"
    world.break_first = True  # what is deleted serves nobody
    operator.run(8)
    assert world.placement() == "a[0:4]"
    assert reasons(world)[0] == "NodeLost"
    assert world.condition("Ready")["status"] == "True"
