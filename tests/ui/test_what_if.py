"""What-if: the problem with the changes, the planner's real answer, and its bounds."""

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from splitinference.adapters.profiler import profile_from_cache as operators_profile
from splitinference.controller.manifests import profile_pod
from splitinference.core.planner import SolverError, SolverProcess
from splitinference.core.values.profile import Profile
from splitinference.core.values.result import Limits, TimedOut
from splitinference.simulation.traces.synthetic import GENERATORS
from splitinference.ui.origins.simulated import Simulated
from splitinference.ui.origins.sources import Recorded
from splitinference.ui.questions.asked import Basis, Question, UnanswerableError, changed, read_question
from splitinference.ui.questions.what_if import Bounds, BusyError, WhatIf
from tests.controller.objects import parsed
from tests.controller.pretend import SETTINGS
from tests.controller.stories import serving
from tests.controller.world import NAMESPACE
from tests.test_catalogue_files import NOMINAL, entry, written
from tests.ui.pages import Told


@pytest.fixture(scope="module")
def source() -> Simulated:
    step = GENERATORS["utilization-step"]
    return Simulated(step.make(step.nodes, 3600, 1), speed=0)


@pytest.fixture(scope="module")
def basis(source: Simulated) -> Basis:
    return source.basis(source.key)


def question(source: Simulated, **more: Any) -> Question:
    return read_question({"resource": source.key, **more})


def ask(source: Simulated, **more: Any) -> dict[str, Any]:
    asks = WhatIf(source, Bounds(seconds=20))
    try:
        return asyncio.run(asks.ask(question(source, **more)))
    finally:
        asks.close()


def test_a_node_that_goes_away_is_planned_around(source: Simulated, basis: Basis):
    assert basis.plan is not None
    gone = basis.plan.segments[0].node
    found = ask(source, remove=[gone])
    assert found["outcome"] == "solved"
    assert gone not in {s["node"] for s in found["plan"]["segments"]}
    assert found["now"]["revision"] == basis.plan.revision
    assert found["stay"] == {"violations": [f"{gone} is gone"], "predicted": None}, "and it is said why the plan cannot stay"
    assert found["plan"]["predicted"]["nextTokenMs"] >= found["now"]["predicted"]["nextTokenMs"]


def test_load_of_others_slows_the_plan_that_stays_and_the_new_one_is_no_worse(source: Simulated, basis: Basis):
    assert basis.plan is not None
    found = ask(source, busy={basis.plan.segments[0].node: 90})
    now, stay, then = (found[name]["predicted"]["nextTokenMs"] for name in ("now", "stay", "plan"))
    assert stay > now
    assert then <= stay


def test_a_rule_that_no_node_can_keep_has_no_plan_and_the_reason_is_said(source: Simulated):
    found = ask(source, rules=[{"layers": "first", "labels": {"example.com/nowhere": "true"}}])
    assert (found["outcome"], found["plan"]) == ("infeasible", None)
    assert "example.com/nowhere" in str(found["reasons"])


def test_a_limit_that_nothing_keeps_has_no_plan_and_zero_takes_limits_away(source: Simulated, basis: Basis):
    assert ask(source, next_token_ms=0.001)["outcome"] == "infeasible"
    limited = basis.problem.model_copy(update={"slo": basis.problem.slo.model_copy(update={"time_per_output_token_ms": 50.0})})
    assert changed(limited, question(source)).slo.time_per_output_token_ms == 50.0
    assert changed(limited, question(source, next_token_ms=0)).slo.time_per_output_token_ms is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"remove": ["nobody"]}, "There is no node 'nobody'"),
        ({"busy": {"node0": 101}}, "from 0 to 100 %"),
        ({"busy": {"node0": -1}}, "from 0 to 100 %"),
        ({"rules": [{"layers": "0:900", "labels": {"a": "b"}}]}, "has 18 layers"),
        ({"remove": [f"node{i}" for i in range(6)]}, "Without any node"),
    ],
)
def test_what_does_not_exist_is_named(source: Simulated, basis: Basis, change: dict[str, Any], words: str):
    with pytest.raises(UnanswerableError, match=words):
        changed(basis.problem, question(source, **change))


@pytest.mark.parametrize(
    "body",
    [None, [], "x", {"resource": ""}, {"resource": "a/b", "remove": ["x"] * 101},
     {"resource": "a/b", "rules": [{"layers": "x", "labels": {}}]},
     {"resource": "a/b", "first_token_ms": -1}, {"resource": "a/b", "busy": {"a": "much"}},
     {"resource": "a/b", "rules": [{"layers": "0:" + "9" * 5000, "labels": {"a": "b"}}]}],
)  # fmt: skip
def test_questions_of_another_form_are_refused(body: Any):
    with pytest.raises(UnanswerableError):
        read_question(body)


class Slow(SolverProcess):
    """A solver that waits until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.at_work = 0
        self.most = 0
        self.go = threading.Event()

    def solve(self, *_: Any, **__: Any) -> TimedOut:
        self.at_work += 1
        self.most = max(self.most, self.at_work)
        assert self.go.wait(30)
        self.at_work -= 1
        return TimedOut(None, float("-inf"))


def test_one_question_at_a_time_few_wait_and_more_are_sent_away(source: Simulated):
    slow = Slow()

    async def play() -> None:
        asks = WhatIf(source, Bounds(most=3), lambda: slow)
        asked = [asyncio.create_task(asks.ask(question(source))) for _ in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(BusyError, match="3 questions"):
            await asks.ask(question(source))
        slow.go.set()
        found = await asyncio.gather(*asked)
        assert [f["outcome"] for f in found] == ["timedOut"] * 3
        assert (await asks.ask(question(source)))["plan"] is None, "there is room again"

    asyncio.run(play())
    assert slow.most == 1


def test_a_solver_that_breaks_is_an_answer_and_not_a_broken_page(source: Simulated):
    class Broken(SolverProcess):
        def solve(self, *_: Any, **__: Any) -> TimedOut:
            raise SolverError("out of memory")

    asks = WhatIf(source, Bounds(), Broken)
    with pytest.raises(UnanswerableError, match="out of memory"):
        asyncio.run(asks.ask(question(source)))


def test_the_limits_of_time_and_memory_are_those_of_the_page(source: Simulated):
    given: list[Limits] = []

    class Watched(SolverProcess):
        def solve(self, problem: Any, limits: Limits = Limits(), hint: Any = None) -> TimedOut:  # noqa: B008
            given.append(limits)
            return TimedOut(None, 0.0)

    asyncio.run(WhatIf(source, Bounds(seconds=3, memory_mib=300), Watched).ask(question(source)))
    assert given == [Limits(3, 300)]


def test_a_recorded_cluster_is_planned_as_the_operator_would(tmp_path: Path):
    """From the objects alone: nodes, pods, the resource, and the ConfigMap with what was read of the model."""
    world, _ = serving()
    body = world.objects["SplitInference", NAMESPACE, "chat"]
    items = [{"kind": kind, **thing} for (kind, _, _), thing in world.objects.items()] + [
        {"kind": "Node", **n} for n in world.nodes.values()
    ]
    key = f"{NAMESPACE}/chat"
    with pytest.raises(UnanswerableError, match="has not read this model"):
        Recorded(items, SETTINGS).basis(key)
    for missing in ("team/other", "chat", "", "a/b/c"):
        with pytest.raises(UnanswerableError, match="There is no SplitInference"):
            Recorded(items, SETTINGS).basis(missing)
    resource = parsed(body)
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 128,
              "num_hidden_layers": 4,
              "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 128, "max_position_embeddings": 4096,
              "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "hidden_act": "silu"}  # fmt: skip
    packed = profile_pod.pack(config, tensors(), ["config.json", "model.safetensors", "tokenizer.json"], {"commit": "a" * 40})
    kept = profile_pod.cache_object(resource, packed)
    theirs = operators_profile(resource, packed, SETTINGS)
    assert isinstance(theirs, Profile)
    basis = Recorded([*items, kept], SETTINGS).basis(key)
    assert {n.name for n in basis.problem.snapshot.nodes} == set(world.nodes)
    assert len(basis.problem.profile.layers) == 6
    assert basis.plan is None, "the plan in the status is of another model"
    assert basis.problem.profile == theirs
    world.status()["plan"]["modelDigest"] = theirs.digest
    assert Recorded([*items, kept], SETTINGS).basis(key).plan is not None, "the plan that serves is known"
    labelled = {"splitinference.dev/processor": "gpu", "nvidia.com/gpu.product": "Mine-1"}
    first = next(item for item in items if item["kind"] == "Node")
    first["metadata"]["labels"] = {**first["metadata"].get("labels", {}), **labelled}
    first["status"].setdefault("allocatable", {})["nvidia.com/gpu"] = "1"
    for label in [name for name in first["metadata"]["labels"] if name.endswith(("gflops", "gbps", "gbs"))]:
        del first["metadata"]["labels"][label]
    folder = written(tmp_path, processors={"Mine-1": NOMINAL}, entries=[entry("Mine-1")])
    extended = Recorded([*items, kept], SETTINGS.model_copy(update={"catalogue_folder": folder})).basis(key).problem.snapshot
    (known,) = [node for node in extended.nodes if node.name == first["metadata"]["name"]]
    assert known.flops_per_s == 1e14, "the operator's own catalogue counts"


def tensors() -> dict[str, list[Any]]:
    shapes = {"model.embed_tokens.weight": [128, 64], "model.norm.weight": [64], "lm_head.weight": [128, 64]}
    for layer in range(4):
        at = f"model.layers.{layer}."
        shapes |= {f"{at}self_attn.{name}_proj.weight": [64, 64] for name in "qkvo"}
        shapes |= {f"{at}mlp.gate_proj.weight": [128, 64], f"{at}mlp.up_proj.weight": [128, 64], f"{at}mlp.down_proj.weight": [64, 128]}
        shapes |= {f"{at}{name}.weight": [64] for name in ("input_layernorm", "post_attention_layernorm")}
    found: dict[str, list[Any]] = {}
    for name, shape in shapes.items():
        size = 4
        for length in shape:
            size *= length
        found[name] = ["F32", shape, size]
    return found


def test_a_question_while_the_cluster_is_away_is_refused():
    from splitinference.controller.ports import UnavailableError

    asks = WhatIf(Told(error=UnavailableError("away")), Bounds(), Slow)
    with pytest.raises(UnavailableError):
        asyncio.run(asks.ask(read_question({"resource": "team/chat"})))
