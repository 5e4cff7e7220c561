"""Objects of a resource whose model is a GGUF file: image, engine, files, and the gateway's tokenizer."""

from typing import Any

import pytest

from splitinference.controller.api.spec import Rejected, Spec, not_served, read_resource
from splitinference.controller.manifests import profile_pod
from splitinference.controller.manifests.segment import Manifests
from splitinference.controller.spec_to_core import plan_constraints
from splitinference.core.values.plan import Segment
from splitinference.core.values.profile import Engine, Profile
from splitinference.settings import Settings
from tests.controller.manifests.built import a_profile, a_resource, variables
from tests.controller.objects import parsed

SETTINGS = Settings(segment_image="torch:1", segment_llama_cpp_image="llama:1")
HUB = {"id": "m", "source": {"huggingFace": {"repository": "owner/model", "tokenSecretRef": {"name": "hub"}}}, "file": "q4/m.gguf"}
FOLDER = {"id": "m", "source": {"hostPath": {"path": "/models/m"}}}
FILE = {"id": "m", "source": {"hostPath": {"path": "/models/m.gguf"}}}
CLAIM = {"id": "m", "source": {"persistentVolumeClaim": {"claimName": "models", "path": "q/m.gguf"}}}


def llama(*files: str, commit: str = "") -> Profile:
    return a_profile().model_copy(update={"engine": Engine.LLAMA_CPP, "files": files or ("m.gguf",), "commit": commit})


def segment(model: dict[str, Any], profile: Profile, settings: Settings = SETTINGS) -> dict[str, Any]:
    made = Manifests(settings).segment(parsed(a_resource(model=model)), profile, Segment(start=12, end=22, node="a"), 1, 1)
    return dict(made.pod["spec"])


def gateway(model: dict[str, Any], profile: Profile) -> dict[str, Any]:
    objects = Manifests(SETTINGS).gateway(parsed(a_resource(model=model)), profile)
    return dict(next(o for o in objects if o["kind"] == "Deployment")["spec"]["template"]["spec"])


def test_a_segment_runs_in_the_image_of_its_engine():
    spec = segment(FOLDER, llama())
    (container,) = spec["containers"]
    assert container["image"] == "llama:1"
    assert variables(container)["SI_ENGINE"] == "llamacpp"
    assert variables(container)["SI_MODEL_PATH"] == "/model/m.gguf"
    (torch,) = segment(FOLDER, a_profile())["containers"]
    assert torch["image"] == "torch:1"
    assert "SI_ENGINE" not in variables(torch), "segments of before keep their names"


def test_the_image_of_the_other_engine_is_not_content():
    def name(profile: Profile, **settings: str) -> str:
        found = Manifests(SETTINGS.model_copy(update=settings))
        return found.segment(parsed(a_resource(model=FOLDER)), profile, Segment(start=1, end=2, node="a"), 1, 1).name

    assert name(llama()) != name(llama(), segment_llama_cpp_image="llama:2")
    assert name(llama()) == name(llama(), segment_image="torch:2")
    assert name(a_profile()) == name(a_profile(), segment_llama_cpp_image="llama:2")
    assert name(llama("a.gguf")) != name(llama("b.gguf"))


@pytest.mark.parametrize("model", [FILE, CLAIM])
def test_of_a_file_nothing_but_the_file_is_mounted(model):
    spec = segment(model, llama())
    mount = next(m for m in spec["containers"][0]["volumeMounts"] if m["name"] == "model")
    assert mount["mountPath"] == variables(spec["containers"][0])["SI_MODEL_PATH"] == "/model/m.gguf"
    assert mount["readOnly"] is True
    volume = next(v for v in spec["volumes"] if v["name"] == "model")
    assert volume.get("hostPath", {}).get("type", "File") == "File"
    assert mount.get("subPath") == ("q/m.gguf" if model is CLAIM else None)


@pytest.mark.parametrize("cache", ["", "/var/cache/models"])
def test_of_a_hub_a_segment_fetches_the_part_with_its_layers(cache):
    settings = SETTINGS.model_copy(update={"model_cache_path": cache})
    spec = segment(HUB, llama("q4/m.gguf", commit="c0ffee0"), settings)
    (init,) = spec["initContainers"]
    root = "/cache" if cache else "/model"
    path = variables(spec["containers"][0])["SI_MODEL_PATH"]
    assert path.startswith(root)
    assert path.endswith("/m.gguf")
    words = init["command"][3:]
    assert words[1:3] == ["owner/model", "c0ffee0"]
    assert [*words[3:6]] == [path.removesuffix("/m.gguf"), "12:22/32", "q4/m.gguf"]
    assert words[6:] == (["/cache", "200"] if cache else [])
    assert init["image"] == "llama:1"
    assert [e["name"] for e in init["env"] if "valueFrom" in e] == ["HF_TOKEN"]
    other = Manifests(settings).segment(
        parsed(a_resource(model=HUB)), llama("q4/m.gguf", commit="c0ffee0"), Segment(start=0, end=12, node="a"), 1, 1
    )
    assert cache == "" or variables(other.pod["spec"]["containers"][0])["SI_MODEL_PATH"] != path, "one folder for each part"


def test_what_is_prefetched_is_what_the_segment_fetches():
    settings = SETTINGS.model_copy(update={"model_cache_path": "/var/cache/models"})
    profile, resource = llama("m.gguf", commit="c0ffee0"), parsed(a_resource(model=HUB))
    pod = Manifests(settings).prefetch(resource, profile, Segment(start=12, end=22, node="a"))
    assert pod is not None
    assert pod["spec"]["containers"][0]["command"] == segment(HUB, profile, settings)["initContainers"][0]["command"]


@pytest.mark.parametrize(
    ("model", "files", "source"),
    [
        (FOLDER, ("m.gguf",), ["m.gguf", "/model"]),
        (FILE, ("m.gguf",), ["m.gguf", "/model"]),
        (CLAIM, ("m.gguf",), ["m.gguf", "/model"]),
        (HUB, ("q4/m.gguf",), ["q4/m.gguf", "https://huggingface.co", "owner/model", "c0ffee0"]),
    ],
)
def test_the_gateway_reads_a_tokenizer_that_an_init_container_writes(model, files, source):
    spec = gateway(model, llama(*files, commit="c0ffee0" if model is HUB else ""))
    (init,), (server,) = spec["initContainers"], spec["containers"]
    assert init["command"][4:] == ["/tokenizer", *source]
    assert init["image"] == server["image"]
    assert variables(server)["SI_MODEL_PATH"] == "/tokenizer"
    mounts = {m["name"]: m for m in server["volumeMounts"]}
    assert mounts["tokenizer"]["readOnly"] is True
    assert "model" not in mounts, "the gateway itself needs nothing of the weights"
    assert {m["name"] for m in init["volumeMounts"]} <= {v["name"] for v in spec["volumes"]}
    assert init["securityContext"]["readOnlyRootFilesystem"] is True


def test_the_gateway_of_another_model_is_as_it_was():
    spec = gateway(FOLDER, a_profile())
    assert not spec.get("initContainers")
    assert variables(spec["containers"][0])["SI_MODEL_PATH"] == "/model"


@pytest.mark.parametrize(
    ("model", "image", "said"),
    [
        (FOLDER, "torch:1", ["", "Auto", ""]),
        (FOLDER | {"engine": "LlamaCpp"}, "llama:1", ["", "LlamaCpp", ""]),
        (FILE, "llama:1", ["", "Auto", "m.gguf"]),
        (HUB, "llama:1", ["", "Auto", "q4/m.gguf"]),
    ],
)
def test_the_model_is_read_in_the_image_that_it_will_need(model, image, said):
    pod = profile_pod.profile_pod(parsed(a_resource(model=model)), "a", SETTINGS)
    (reader,) = pod["spec"]["containers"]
    assert (reader["image"], reader["command"][-3:]) == (image, said)


def test_another_file_or_engine_is_another_reading():
    names = {profile_pod.cache_name(parsed(a_resource(model=FOLDER | more))) for more in ({}, {"engine": "LlamaCpp"}, {"file": "a.gguf"})}
    assert len(names) == 3
    assert profile_pod.cache_name(parsed(a_resource(model=FOLDER | {"engine": "Auto"}))) in names, "what was read before is still read"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model": FILE | {"engine": "Torch"}}, "engine Torch does not read m.gguf"),
        ({"model": FOLDER | {"engine": "Torch", "file": "m.gguf"}}, "engine Torch does not read m.gguf"),
        ({"model": FILE | {"file": "a.gguf"}}, "file must not be set where source names a GGUF file itself"),
        ({"model": FILE | {"digest": "sha256:" + "a" * 64}}, "digest is available for safetensors alone"),
        ({"model": FOLDER | {"file": "../m.gguf"}}, "String should match pattern"),
        ({"model": FILE, "verification": {"samplePercent": 1}}, "verification needs engine Torch"),
        ({"model": FILE, "segments": {"weights": "Stored"}}, "segments.weights Stored needs engine Torch"),
        ({"model": FILE | {"maxConcurrentSequences": 59}}, "model.maxConcurrentSequences must be at most 58 with llama.cpp"),
    ],
)
def test_what_an_engine_cannot_do_is_refused(changes, reason):
    found = read_resource(a_resource(**changes))
    assert isinstance(found, Rejected)
    assert reason in str(found)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"verification": {"samplePercent": 1}},
            "the folder /models/m on the nodes has a GGUF model, which llama.cpp serves: spec.verification",
        ),
        ({"segments": {"weights": "Stored"}}, "spec.segments.weights Stored needs engine Torch"),
        ({"model": FOLDER | {"maxConcurrentSequences": 100}}, "spec.model.maxConcurrentSequences must be at most 58"),
        ({}, None),
    ],
)
def test_where_auto_found_a_gguf_model_the_same_is_refused(changes, reason):
    spec: Spec = parsed(a_resource(**({"model": FOLDER} | changes))).spec
    assert not_served(spec, a_profile()) is None
    found = not_served(spec, llama())
    assert found is None if reason is None else reason in (found or "")


def test_only_cuts_that_the_engine_can_make_are_planned():
    def bounds(cuts: tuple[int, ...], **partition: Any) -> Any:
        return plan_constraints.constraints(parsed(a_resource(model=FOLDER, partition=partition)).spec, 10, None, cuts)

    assert bounds((5,)).split_points == (5,)
    assert bounds(()).split_points == ()
    assert bounds((3, 5), allowedSplitPoints=[5]).split_points == (5,)
    assert "cannot cut it at 4; it can at 3, 5" in str(bounds((3, 5), allowedSplitPoints=[4]))
    assert "cannot cut it at 1; it can at 2 to 8" in str(bounds(tuple(range(2, 9)), allowedSplitPoints=[1]))
    assert "cannot cut it at 4, nor elsewhere" in str(bounds((), allowedSplitPoints=[4]))
    assert "3 segments cannot be made: the model's engine can cut it into 2 at most" in str(bounds((5,), minSegments=3))
