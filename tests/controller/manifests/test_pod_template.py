"""What users and clusters add to pods: what is taken over, what is reserved, and what makes another segment."""

from typing import Any

import pytest
from pydantic import ValidationError

from splitinference.controller.api.spec import Rejected, read_resource
from splitinference.controller.manifests.profile_pod import profile_pod
from splitinference.controller.manifests.segment import Manifests
from splitinference.core.values.plan import Segment
from splitinference.settings import Settings
from tests.controller.manifests.built import HUB, a_profile, a_resource
from tests.controller.manifests.test_profiling import resource
from tests.controller.objects import parsed

FULL: dict[str, Any] = {
    "annotations": {"team": "blue"},
    "labels": {"cost-center": "42"},
    "priorityClassName": "high",
    "runtimeClassName": "nvidia",
    "schedulerName": "other",
    "dnsPolicy": "ClusterFirst",
    "dnsConfig": {"searches": ["corp.example"], "options": [{"name": "timeout", "value": "1"}]},
    "env": [{"name": "OMP_PROC_BIND", "value": "true"}, {"name": "PROXY", "valueFrom": {"secretKeyRef": {"name": "p", "key": "url"}}}],
    "imagePullSecrets": ["regcred"],
    "securityContext": {"runAsUser": 1000660000, "fsGroup": 1000660000, "seLinuxOptions": {"level": "s0:c26,c5"}},
}


def segment(spec: dict[str, Any] | None = None, **settings: Any) -> tuple[str, dict[str, Any]]:
    made = Manifests(Settings(**settings)).segment(
        parsed(a_resource(**(spec or {}))), a_profile(), Segment(start=12, end=22, node="a"), 900 << 20, 100 << 20
    )
    return made.name, dict(made.pod)


def gateway_pod(spec: dict[str, Any] | None = None, **settings: Any) -> dict[str, Any]:
    objects = Manifests(Settings(**settings)).gateway(parsed(a_resource(**(spec or {}))), a_profile())
    return next(obj for obj in objects if obj["kind"] == "Deployment")["spec"]["template"]


def of_segments(**template: Any) -> dict[str, Any]:
    return {"podTemplate": {"segments": template}}


@pytest.mark.parametrize("which", ["segments", "gateway"])
def test_all_of_a_template_is_in_the_pod(which):
    spec = {"podTemplate": {which: FULL}}
    pod = segment(spec)[1] if which == "segments" else gateway_pod(spec)
    found, main = pod["spec"], pod["spec"]["containers"][0]
    assert FULL["annotations"].items() <= pod["metadata"]["annotations"].items()
    assert FULL["labels"].items() <= pod["metadata"]["labels"].items()
    assert [found[name] for name in ("priorityClassName", "runtimeClassName", "schedulerName", "dnsPolicy")] == [
        "high", "nvidia", "other", "ClusterFirst",
    ]  # fmt: skip
    assert found["dnsConfig"] == {
        "options": [{"name": "timeout", "value": "1"}, {"name": "ndots", "value": "1"}],
        "searches": ["corp.example"],
    }
    assert all(variable in main["env"] for variable in FULL["env"])
    assert found["imagePullSecrets"] == [{"name": "regcred"}]
    assert found["securityContext"]["runAsUser"] == found["securityContext"]["fsGroup"] == 1000660000
    assert found["securityContext"]["seLinuxOptions"] == {"level": "s0:c26,c5"}
    assert found["securityContext"]["runAsNonRoot"] is True


def test_only_what_changes_what_a_segment_computes_with_makes_another_segment():
    plain = segment()[0]
    for field in FULL:
        name = segment(of_segments(**{field: FULL[field]}))[0]
        assert (name != plain) is (field in ("env", "runtimeClassName")), field
    assert segment({"podTemplate": {"gateway": FULL}})[0] == plain
    assert segment(pod_template={"segments": {"labels": {"a": "b"}}})[0] == plain


def test_the_charts_template_is_the_default_and_the_resource_goes_before_it():
    default = {"segments": {"annotations": {"a": "1", "b": 1}, "env": [{"name": "X", "value": 8}], "priorityClassName": "low"}}
    own = of_segments(annotations={"a": "2"}, env=[{"name": "Y", "value": "y"}], priorityClassName="high")
    _, pod = segment(own, pod_template=default)
    assert {"a": "2", "b": "1"}.items() <= pod["metadata"]["annotations"].items()
    assert pod["spec"]["priorityClassName"] == "high"
    env = pod["spec"]["containers"][0]["env"]
    assert {"name": "X", "value": "8"} in env, "numbers in values become words"
    assert {"name": "Y", "value": "y"} in env


@pytest.mark.parametrize(
    "template",
    [
        {"labels": {"app.kubernetes.io/name": "x"}},
        {"annotations": {"splitinference.dev/left": "x"}},
        {"env": [{"name": "SI_SEGMENT", "value": "x"}]},
        {"env": [{"name": "HOME", "value": "x"}]},
        {"env": [{"name": "A", "value": "x", "valueFrom": {}}]},
        {"env": [{"name": "A", "value": "x"}, {"name": "A", "value": "y"}]},
        {"dnsPolicy": "None"},
        {"securityContext": {"runAsUser": 0}},
        {"hostNetwork": True},
    ],
    ids=str,
)
def test_what_is_reserved_or_makes_no_sense_is_refused_by_name(template):
    found = read_resource(a_resource(podTemplate={"segments": template}))
    assert isinstance(found, Rejected)
    assert found.problems[0].path.startswith("spec.podTemplate.segments")
    with pytest.raises(ValueError, match=next(iter(template))):
        Manifests(Settings(pod_template={"segments": template}))


def test_what_fetches_a_model_has_the_variables_too():
    proxy = {"name": "HTTPS_PROXY", "value": "http://proxy.corp.example:3128"}
    _, pod = segment({"model": HUB} | of_segments(env=[proxy]))
    assert proxy in pod["spec"]["initContainers"][0]["env"]


def test_jobs_take_what_lets_them_run_and_nothing_that_computes():
    pod = profile_pod(resource(podTemplate={"segments": FULL}), "a", Settings())
    assert pod["spec"]["imagePullSecrets"] == [{"name": "regcred"}]
    assert pod["spec"]["securityContext"]["runAsUser"] == 1000660000
    assert "runtimeClassName" not in pod["spec"]
    assert all(variable in pod["spec"]["containers"][0]["env"] for variable in FULL["env"]), "a proxy, say"
    assert pod["metadata"]["annotations"]["cluster-autoscaler.kubernetes.io/safe-to-evict"] == "true"
    assert pod["metadata"]["annotations"]["splitinference.dev/node"] == "a"


# --- service meshes ------------------------------------------------------------------------------------------------------------------


def test_segments_and_jobs_ask_meshes_for_no_sidecar_unless_the_setting_says_otherwise():
    for pod in (segment()[1], profile_pod(resource(), "a", Settings())):
        assert pod["metadata"]["annotations"]["sidecar.istio.io/inject"] == "false"
        assert pod["metadata"]["annotations"]["linkerd.io/inject"] == "disabled"
        assert pod["metadata"]["labels"]["istio.io/dataplane-mode"] == "none"
    assert "linkerd.io/inject" not in gateway_pod()["metadata"]["annotations"]
    assert gateway_pod(mesh_opt_out="gateway")["metadata"]["annotations"]["linkerd.io/inject"] == "disabled"
    assert "linkerd.io/inject" not in segment(mesh_opt_out="")[1]["metadata"]["annotations"]
    with pytest.raises(ValidationError):
        Settings(mesh_opt_out="everything")


def test_a_selector_never_holds_what_a_user_may_change():
    objects = {obj["kind"]: obj for obj in Manifests(Settings()).gateway(parsed(a_resource(podTemplate={"gateway": FULL})), a_profile())}
    labels = objects["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert objects["Service"]["spec"]["selector"].items() <= labels.items()
    assert "cost-center" not in objects["Deployment"]["spec"]["selector"]["matchLabels"]


# --- resources, users ----------------------------------------------------------------------------------------------------------------

EVERYTHING = {
    "requests": {"cpu": "10m", "memory": "64Mi", "ephemeral-storage": "1Gi"},
    "limits": {"cpu": 1, "memory": "1Gi", "ephemeral-storage": "1Gi"},
}
STORAGE = {"requests": {"ephemeral-storage": "1Gi"}, "limits": {"ephemeral-storage": "1Gi"}}


def test_every_container_of_every_pod_can_have_requests_and_limits():
    settings: dict[str, Any] = {
        "segment_cpu_limit": "2", "segment_resources": STORAGE, "gateway_resources": EVERYTHING, "job_resources": EVERYTHING,
        "model_cache_path": "/var/models",
    }  # fmt: skip
    hub = {"model": HUB}
    builder = Manifests(Settings(**settings))
    prefetch = builder.prefetch(parsed(a_resource(**hub)), a_profile(), Segment(start=0, end=4, node="a"))
    assert prefetch is not None
    pods = [segment(hub, **settings)[1], gateway_pod(hub, **settings), prefetch, profile_pod(resource(), "a", Settings(**settings))]
    for pod in pods:
        for container in [*pod["spec"]["containers"], *pod["spec"].get("initContainers", [])]:
            for part in ("requests", "limits"):
                assert {"cpu", "memory", "ephemeral-storage"} <= set(container["resources"][part]), container["name"]
                assert all(isinstance(value, str) for value in container["resources"][part].values())


def test_the_plan_alone_sets_a_segments_memory():
    with pytest.raises(ValidationError, match="memory"):
        Settings(segment_resources={"limits": {"memory": "1Gi"}})
    with pytest.raises(ValidationError, match="neither requests nor limits"):
        Settings(job_resources={"cpu": "1"})


def test_users_are_left_to_the_cluster_on_request(monkeypatch):
    monkeypatch.setenv("SPLITINFERENCE_POD_USER", "")
    settings = Settings()
    assert settings.pod_user is None
    for pod in (segment(pod_user=None)[1], gateway_pod(pod_user=None), profile_pod(resource(), "a", settings)):
        assert "runAsUser" not in pod["spec"]["securityContext"]
        assert "runAsGroup" not in pod["spec"]["securityContext"]
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True


def test_autoscalers_are_told_what_the_settings_say():
    annotations = segment(safe_to_evict="false", do_not_disrupt=True)[1]["metadata"]["annotations"]
    assert annotations["cluster-autoscaler.kubernetes.io/safe-to-evict"] == "false"
    assert annotations["karpenter.sh/do-not-disrupt"] == "true"
    assert "karpenter.sh/do-not-disrupt" not in segment()[1]["metadata"]["annotations"]


def test_services_take_both_families_where_the_cluster_has_both():
    made = Manifests(Settings()).segment(parsed(a_resource()), a_profile(), Segment(start=0, end=4, node="a"), 1, 1)
    services = [made.service, *(o for o in Manifests(Settings()).gateway(parsed(a_resource()), a_profile()) if o["kind"] == "Service")]
    assert [service["spec"]["ipFamilyPolicy"] for service in services] == ["PreferDualStack"] * 2
