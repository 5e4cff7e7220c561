"""Transitions on nodes with devices: two segments never hold one device, and what is short is said."""

from splitinference.core.decide.feasibility.restrict import with_room as limited
from splitinference.core.transition.dry_run import dry_run
from splitinference.core.transition.state import NamedSegment, Observed, ObservedSegment, Phase, ShortOf, Target
from splitinference.core.transition.steps import Blocked, CreateSegment, DeleteSegment, Done, Steps, Strategy, next_steps
from splitinference.core.values.cluster import Processor
from tests.core.planning import a_node, a_problem

GPU = "example.com/gpu"
MIB = 1024 * 1024


def a_segment(name: str, start: int, end: int, device: str = GPU) -> NamedSegment:
    return NamedSegment(name=name, start=start, end=end, node="a", memory_bytes=MIB, processor=f"{GPU}/0" if device else "", device=device)


def observed(devices: int, *serving: NamedSegment) -> Observed:
    return Observed(
        segments={s.name: ObservedSegment(**s.model_dump(), phase=Phase.PROVEN) for s in serving},
        serving=Target(pipelines=(serving,)).route if serving else None,
        room_bytes={"a": 100 * MIB},
        room_devices={"a": {GPU: devices}} if devices else {},
    )


OLD, NEW = a_segment("old", 0, 4), a_segment("new", 0, 4)


def test_the_successor_waits_for_the_device_with_surge_and_gets_it_with_break_first():
    seen = observed(1, OLD)
    blocked = next_steps(Target(pipelines=((NEW,),)), seen, Strategy.SURGE)
    assert isinstance(blocked, Blocked)
    assert blocked.short[0].resource is ShortOf.DEVICE
    assert blocked.why.startswith(
        f"segment [0, 4) requests a device of {GPU}, but a has 0 free beside 1 of present segments; the strategy BreakFirst"
    )
    first = next_steps(Target(pipelines=((NEW,),)), seen, Strategy.BREAK_FIRST)
    assert isinstance(first, Steps)
    assert isinstance(first.actions[0], DeleteSegment)
    assert isinstance(dry_run(Target(pipelines=((NEW,),)), seen, Strategy.BREAK_FIRST), Done)


def test_with_a_second_device_both_are_there_at_once():
    steps = next_steps(Target(pipelines=((NEW,),)), observed(2, OLD), Strategy.SURGE)
    assert isinstance(steps, Steps)
    assert steps.actions == (CreateSegment(segment=NEW),)


def test_the_cpu_of_the_same_node_needs_no_device():
    on_cpu = a_segment("cpu", 0, 4, device="")
    steps = next_steps(Target(pipelines=((on_cpu,),)), observed(1, OLD), Strategy.SURGE)
    assert isinstance(steps, Steps)
    assert steps.actions == (CreateSegment(segment=on_cpu),)


def test_two_segments_made_at_once_share_no_device():
    target = Target(pipelines=((a_segment("one", 0, 2), a_segment("two", 2, 4)),))
    steps = next_steps(target, observed(1), Strategy.SURGE)
    assert isinstance(steps, Steps)
    assert [action.segment.name for action in steps.actions if isinstance(action, CreateSegment)] == ["one"]


def test_a_device_that_no_node_has_blocks_with_its_name():
    blocked = next_steps(Target(pipelines=((NEW,),)), observed(0), Strategy.SURGE)
    assert isinstance(blocked, Blocked)
    assert f"requests a device of {GPU}, but a has 0 free" in blocked.why


def _places() -> tuple[Processor, ...]:
    cpu = Processor(name="", flops_per_s=1.0, memory_bandwidth_bytes_per_s=1.0, memory_free_bytes=80 * MIB)
    return (cpu, *(cpu.model_copy(update={"name": f"{GPU}/{n}", "resource": GPU}) for n in range(2)))


def test_less_memory_on_a_node_leaves_its_devices_alone_unless_nothing_may_be_there():
    problem = a_problem(a_node("a", processors=_places()))
    for most, expected in ((50 * MIB, [50, 80, 80]), (0, [0, 0, 0])):
        found = limited(problem, {"a": most}).snapshot.nodes[0].processors
        assert [place.memory_free_bytes // MIB for place in found] == expected
