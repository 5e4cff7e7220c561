"""The content of a model in pods and status: one commit for all, digests for each segment, and a node with another model is avoided."""

from datetime import timedelta
from typing import Any

import pytest

from splitinference.adapters.profiler import profile_from_cache
from splitinference.controller.api.spec import Rejected, Resource, read_resource
from splitinference.controller.manifests import profile_pod
from splitinference.controller.manifests.segment import Manifests
from splitinference.controller.ports import Unreadable
from splitinference.controller.reconcile.planning.desired import Asked
from splitinference.core.model_files.safetensors import with_content
from splitinference.core.values.plan import Segment
from splitinference.core.values.problem import Constraints
from splitinference.core.values.profile import Profile
from splitinference.settings import Settings
from splitinference_modelfiles.stored.digests import listed
from tests.controller.manifests.built import HUB, a_profile, a_resource, variables
from tests.controller.objects import parsed
from tests.controller.world import NAMESPACE, Operator, World, a_body, a_node

ROOT = "sha256:" + "5" * 64
COMMIT = "0123456789abcdef0123456789abcdef01234567"
WHY = "ModelDigestMismatch: model.layers.3.mlp.up_proj.weight has the digest 0123456789abcdef…, expected fedcba9876543210…"


def segment(profile: Profile, **spec: Any) -> Any:
    return Manifests(Settings()).segment(parsed(a_resource(**spec)), profile, Segment(start=0, end=4, node="n"), 2**29, 2**20)


def test_a_segment_knows_the_root_and_mounts_the_list():
    made = segment(with_content(a_profile(), ROOT, ""))
    pod = made.pod["spec"]
    given = variables(pod["containers"][0])
    assert (given["SI_MODEL_DIGEST"], given["SI_DIGESTS_FILE"]) == (ROOT, "/digests/model.json.gz.b64")
    read = read_resource(a_resource())
    assert isinstance(read, Resource)
    (volume,) = [volume for volume in pod["volumes"] if volume["name"] == "digests"]
    assert volume["configMap"]["name"] == profile_pod.cache_name(read)
    (mount,) = [mount for mount in pod["containers"][0]["volumeMounts"] if mount["name"] == "digests"]
    assert mount == {"name": "digests", "mountPath": "/digests", "readOnly": True}


def test_without_a_known_digest_nothing_is_mounted_and_names_stay_as_they_were():
    made = segment(a_profile())
    assert "SI_MODEL_DIGEST" not in variables(made.pod["spec"]["containers"][0])
    assert "digests" not in [volume["name"] for volume in made.pod["spec"]["volumes"]]
    assert with_content(a_profile(), "", "") == a_profile()


def test_all_pods_fetch_the_commit_that_was_resolved_once():
    profile = with_content(a_profile(), "", COMMIT)
    settings = Settings(model_cache_path="/cache")
    builder = Manifests(settings)
    pods = [segment(profile, model=HUB).pod["spec"]]
    prefetch = builder.prefetch(parsed(a_resource(model=HUB)), profile, Segment(start=0, end=4, node="n"))
    assert prefetch is not None
    pods += [prefetch["spec"] | {"initContainers": prefetch["spec"]["containers"]}]
    pods += [o["spec"]["template"]["spec"] for o in builder.gateway(parsed(a_resource(model=HUB)), profile) if o["kind"] == "Deployment"]
    assert [pod["initContainers"][0]["command"][5] for pod in pods] == [COMMIT] * 3
    without = segment(a_profile(), model=HUB).pod["spec"]
    assert without["initContainers"][0]["command"][5] == "abc", "a profile of an earlier version has no commit"


@pytest.mark.parametrize(("content", "commit"), [(ROOT, ""), ("", COMMIT), (ROOT, COMMIT)])
def test_other_weights_of_the_same_shape_are_another_model(content: str, commit: str):
    one, other = with_content(a_profile(), content, commit), with_content(a_profile(), content[::-1], commit[::-1])
    assert len({a_profile().digest, one.digest, other.digest}) == 3
    assert segment(one).name != segment(other).name


@pytest.mark.parametrize("bad", ["5" * 64, "sha256:" + "5" * 63, "sha256:" + "G" * 64, "sha512:" + "5" * 64, ""])
def test_what_is_no_digest_is_rejected(bad: str):
    read = read_resource(a_resource(model={**a_resource()["spec"]["model"], "digest": bad}))
    assert isinstance(read, Rejected)
    assert "spec.model.digest" in str(read)


@pytest.mark.parametrize("content", [None, listed({"a": "0" * 64}).as_json(), {"commit": COMMIT}])
def test_a_kept_reading_of_another_digest_is_not_served(content: dict[str, Any] | None):
    read = read_resource(a_resource(model={**a_resource()["spec"]["model"], "digest": ROOT}))
    assert isinstance(read, Resource)
    found = profile_from_cache(read, profile_pod.pack({}, {}, (), content), 0)
    assert isinstance(found, Unreadable)
    assert found.reason == "ModelDigestMismatch"
    assert ROOT in found.message


# --- a node whose files are others ----------------------------------------------------------------------------------------------------


def test_a_segment_with_other_weights_does_not_serve_and_its_node_is_avoided_at_once():
    world = World({name: a_node(name, mib=310) for name in ("a", "b", "c", "d")})
    world.add(a_body())
    operator = Operator(world)
    operator.run(6)
    assert world.condition("Ready")["status"] == "True"
    serves = world.serving()
    old = {s["node"] for s in world.status()["plan"]["segments"]}
    (spare,) = {"a", "b", "c", "d"} - old if len(old) == 3 else [sorted({"a", "b", "c", "d"} - old)[0]]
    world.busy[world.status()["plan"]["segments"][0]["node"]] = 0.95
    said: list[str] = []
    for _ in range(60):
        operator.look()
        world.step()
        for (kind, namespace, name), pod in list(world.objects.items()):
            here = kind == "Pod" and namespace == NAMESPACE and name not in serves and "gateway" not in name
            if here and spare in str(pod["spec"].get("affinity")):
                ended = {"exitCode": 1, "reason": "Error", "message": WHY}
                pod["status"] = {
                    "phase": "Running",
                    "conditions": [{"type": "PodScheduled", "status": "True"}, {"type": "Ready", "status": "False"}],
                    "containerStatuses": [
                        {"name": "segment", "restartCount": 1, "ready": False, "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                         "lastState": {"terminated": ended}}
                    ],
                }  # fmt: skip
        condition = world.condition("Progressing")
        said += [condition["message"]] if condition["reason"] == "ModelDigestMismatch" else []
        assert world.serving(), "what serves goes on"
        world.now += timedelta(seconds=10)
    assert said, "it was never said"
    assert "model.layers.3.mlp.up_proj.weight" in said[0]
    assert f"does not start on {spare}" in said[0]
    assert spare not in [s["node"] for s in world.status()["plan"]["segments"]]


def test_the_status_says_which_commit_and_which_digest_are_served():
    asked = Asked(resource=_read(), profile=with_content(a_profile(), ROOT, COMMIT), constraints=Constraints(), digest="")
    assert asked.condition.message == f"m: 32 layers, commit {COMMIT}, digest {ROOT}"
    plain = Asked(resource=_read(), profile=a_profile(), constraints=Constraints(), digest="")
    assert plain.condition.message == "m: 32 layers"


def _read() -> Resource:
    read = read_resource(a_resource())
    assert isinstance(read, Resource)
    return read


def test_the_init_container_knows_the_nodes_cache_and_its_limit():
    def command(**settings: Any) -> list[str]:
        builder = Manifests(Settings(**settings))
        made = builder.segment(parsed(a_resource(model=HUB)), a_profile(), Segment(start=0, end=4, node="n"), 2**29, 2**20)
        found: list[str] = made.pod["spec"]["initContainers"][0]["command"]
        return found

    assert command(model_cache_path="/var/cache/models")[-2:] == ["/cache", "200"]
    assert command(model_cache_path="/var/cache/models", model_cache_gib=0.5)[-1] == "0.5"
    assert command()[-1] == "0:4/32"
