"""Room that a plan leaves for those who check its segments."""

import pytest

from splitinference.core.cost.checks.room import lacking
from splitinference.core.cost.checks.second_copies import Run, Short, places, runs
from splitinference.core.decide.base.validated_solver import Solver
from splitinference.core.planner.solver import solve
from splitinference.core.values.plan import Plan
from splitinference.core.values.problem import Constraints, Problem, TrustRule
from splitinference.core.values.result import Limits
from splitinference.core.values.room import SecondCopies
from tests.core.planning import MIB, Exhaustive, a_node, a_plan, a_problem, all_plans, text_of

TRUSTED = {"trusted": "true"}
ONE = SecondCopies(trusted=TRUSTED)
TWO = SecondCopies(trusted=TRUSTED, replicas=2)
HEAD = Constraints(trust=(TrustRule(start=3, end=4, labels=TRUSTED),))


def problem(copies: SecondCopies | None, constraints: Constraints = HEAD, **mib: int) -> Problem:
    """Nodes by name: capitals are trusted. A layer takes 110 MiB with its margin."""
    nodes = (a_node(name, mib=size, labels=TRUSTED if name.isupper() else {}) for name, size in mib.items())
    return a_problem(*nodes, constraints=constraints, second_copies=copies)


def free(of: Problem) -> dict[str, tuple[int, float]]:
    return {node.name: (node.memory_free_bytes, float("inf")) for node in of.snapshot.nodes}


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        ("A[0:4]", []),
        ("b[0:3] A[3:4]", ["0:3 b"]),
        ("A[0:1] b[1:2] d[2:3] C[3:4]", ["1:3 bd"]),
        ("b[0:1] A[1:2] d[2:3] C[3:4]", ["0:1 b", "2:3 d"]),
        ("A[0:3] b[3:4]", []),
    ],
)
def test_segments_side_by_side_are_one_run(plan, expected):
    given = problem(ONE, A=900, b=900, C=900, d=900)
    assert [f"{run.start}:{run.end} {''.join(sorted(run.nodes))}" for run in runs(a_plan(plan), ONE, given)] == expected


def test_a_verifier_is_on_a_trusted_node_and_takes_its_room_once():
    given = problem(ONE, A=300, b=900, C=500)
    left = free(given)
    run = Run(1, 3, frozenset("b"))
    assert places(run, ONE, given, left) == ("C",)
    assert left["C"][0] // MIB == 279
    assert places(run, ONE, given, left, stays={"A"}) == ("A",)
    assert places(run, ONE, given, left) == ("C",)
    short = places(run, ONE, given, left)
    assert isinstance(short, Short)
    assert str(short) == "the verifier of layers 1 to 3 needs 221 MiB on a trusted node: A has the most, 79 MiB"


@pytest.mark.parametrize(
    ("mib", "expected"),
    [
        ({"A": 900, "b": 900, "C": 900}, ("A", "C")),  # the referee has the most room, by name where it is the same
        ({"A": 300, "b": 900, "d": 900}, ("d", "A")),  # the referee is trusted
        ({"A": 100, "b": 900, "d": 500, "e": 300}, ("e", "d")),  # nobody is: two others
        ({"A": 100, "b": 900, "d": 900}, "the replica of layers 1 to 3 needs 221 MiB on a node of its own: A has the most, 100 MiB"),
        ({"b": 900}, "the referee of layers 1 to 3 needs 221 MiB on a node of its own: no node of its own can be used"),
    ],
)
def test_replica_and_referee_are_on_two_further_nodes(mib, expected):
    given = problem(TWO, Constraints(), **mib)
    left = free(given)
    found = places(Run(1, 3, frozenset("b")), TWO, given, left)
    assert (str(found) if isinstance(found, Short) else found) == expected
    if isinstance(found, Short):
        assert left == free(given), "nothing is taken by half"


def test_cores_trust_rules_and_what_was_wrong_keep_a_copy_away():
    run = Run(1, 3, frozenset("b"))
    rule = Constraints(trust=(TrustRule(start=2, end=3, labels={"country": "here"}),))
    given = problem(ONE, rule, A=900, b=900)
    assert isinstance(places(run, ONE, given, free(given)), Short)
    outside = Constraints(trust=(TrustRule(start=3, end=4, labels={"country": "here"}),))
    given = problem(ONE, outside, A=900, b=900)
    assert places(run, ONE, given, free(given)) == ("A",)
    busy = ONE.model_copy(update={"millicores": 200})
    assert isinstance(places(run, busy, given, {name: (room, 100) for name, (room, _) in free(given).items()}), Short)
    wrong = TWO.model_copy(update={"avoided": frozenset("C")})
    given = problem(wrong, A=900, C=900, b=900, d=900)
    assert places(run, wrong, given, free(given)) == ("d", "A")


@pytest.mark.parametrize("solver", [Exhaustive(), solve], ids=["every plan", "solver"])
@pytest.mark.parametrize("copies", [ONE, TWO], ids=["verifier", "replicas"])
def test_a_plan_leaves_room_for_who_checks_it_where_one_exists(solver, copies):
    """b is quick, and the plan that uses it most cannot be checked: no other node has room for so many layers."""
    given = problem(copies, A=340, b=900, C=340)
    quick = tuple(n.model_copy(update={"flops_per_s": 1e13}) if n.name == "b" else n for n in given.snapshot.nodes)
    given = given.model_copy(update={"snapshot": given.snapshot.model_copy(update={"nodes": quick})})
    without = Solver(solver, Limits(seconds=5)).best(given.model_copy(update={"second_copies": None}), None)
    found = Solver(solver, Limits(seconds=5)).best(given, None)
    assert isinstance(found, Plan), found
    assert isinstance(without, Plan)
    able = [plan for plan in all_plans(given) if not lacking(plan, given)]
    assert bool(able) == (not lacking(found, given)), text_of(found)
    assert found.value is not None


def test_what_verifiers_hold_already_is_theirs():
    """The snapshot counts their memory as taken; the plan that has them still leaves them room."""
    given = problem(ONE.model_copy(update={"held": {"A": 340 * MIB}}), A=120, b=900)
    plan = a_plan("b[0:3] A[3:4]", given)
    assert lacking(plan, given) == ()
    assert [room.what for room in lacking(plan, problem(ONE, A=120, b=900))] == ["the verifier of layers 0 to 3"]


def test_where_no_plan_leaves_room_it_serves_and_says_so():
    given = problem(ONE, A=120, b=900)
    found = Solver(Exhaustive(), Limits(seconds=5)).best(given, None)
    assert isinstance(found, Plan)
    assert text_of(found) == "b[0:3] A[3:4]"
    assert found.explanation[-1] == "no plan leaves 330 MiB on a node that may have the verifier of layers 0 to 3"
