"""A CRD of an older chart is noticed, and what it drops is named."""

import copy
from pathlib import Path
from typing import Any

import yaml

from splitinference.controller.api.crd_gaps import gaps, gaps_in_words
from tests.controller.stories import small
from tests.controller.world import Operator, World, a_body

CRD: dict[str, Any] = yaml.safe_load((Path(__file__).parents[3] / "crds" / "splitinference.yaml").read_text())


def without(*path: str) -> dict[str, Any]:
    crd = copy.deepcopy(CRD)
    part = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    for name in path[:-1]:
        part = part["properties"][name]
        part = part.get("items") or part
    del part["properties"][path[-1]]
    return crd


def test_the_crd_of_this_version_has_no_gap():
    assert gaps(CRD) == ()
    assert gaps_in_words(CRD) == gaps_in_words(None) == ""


def test_what_is_missing_is_named_by_its_path():
    assert gaps(without("podTemplate")) == ("spec.podTemplate",)
    assert gaps(without("partition", "pins", "node")) == ("spec.partition.pins.node",)
    assert gaps(without("gateway", "auth", "tokenReview")) == ("spec.gateway.auth.tokenReview",)
    assert gaps({"spec": {"versions": [{"name": "v1alpha0"}]}}) == ("v1alpha1",)


def test_the_condition_says_so_and_the_model_is_served_all_the_same():
    world = World(small("a", "b"))
    world.add(a_body())
    operator = Operator(world)
    operator.reconciler.crd_note = lambda: gaps_in_words(without("podTemplate"))
    operator.run(6)
    accepted = world.condition("Accepted")
    assert accepted["status"] == "True"
    assert "drops spec.podTemplate: apply crds/splitinference.yaml" in accepted["message"]
    assert world.condition("Ready")["status"] == "True"


def test_a_second_version_needs_a_conversion():
    """Without one the API server would only change the name of the version. Decision 69 says what a second version brings."""
    versions = [version["name"] for version in CRD["spec"]["versions"]]
    assert versions == ["v1alpha1"] or CRD["spec"].get("conversion", {}).get("strategy") == "Webhook"
