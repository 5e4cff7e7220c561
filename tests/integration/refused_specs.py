"""Specs that the API server refuses, each with the words that it says, and how parts of specs are built."""

from typing import Any

HUB = {"repository": "owner/model"}


def model(**changes: Any) -> dict[str, Any]:
    return {"model": {"id": "m", "source": {"hostPath": {"path": "/models/m"}}, **changes}}


def locked(**changes: Any) -> dict[str, Any]:
    return {"keyBroker": {"url": "https://kbs.example:8080", "resource": "default/models/chat", **changes}}


def source(**sources: Any) -> dict[str, Any]:
    return model(source=sources)


def pin(layers: str) -> dict[str, Any]:
    return {"partition": {"pins": [{"layers": layers, "node": "a"}]}}


def rule(layers: str, runtime_class: str = "") -> dict[str, Any]:
    more = {"runtimeClassName": runtime_class} if runtime_class else {}
    return {"privacy": {"rules": [{"layers": layers, "nodeLabels": {"a": "b"}, **more}]}}


def tolerate(**toleration: str) -> dict[str, Any]:
    return {"placement": {"tolerations": [toleration]}}


def template(who: str, **given: Any) -> dict[str, Any]:
    return {"podTemplate": {who: given}}


def reuse(**fields: Any) -> dict[str, Any]:
    return {"reuse": {"scope": "All", **fields}}


def adapters(*names: str, memory: int = 64, **source: Any) -> dict[str, Any]:
    given = source or {"hostPath": {"path": "/a"}}
    return {"adapters": [{"name": name, "source": given} for name in names], "segments": {"adapterMemoryMiB": memory}}


REFUSED: list[tuple[dict[str, Any], str]] = [
    (adapters("a", memory=0), "spec.adapters needs spec.segments.adapterMemoryMiB"),
    ({"segments": {"adapterMemoryMiB": 1}} | model(engine="LlamaCpp"), "spec.segments.adapterMemoryMiB needs spec.model.engine Torch"),
    (adapters("a") | {"verification": {"samplePercent": 1}}, "spec.adapters contradicts spec.verification"),
    (adapters("m"), "spec.adapters must not have the model's own name"),
    (adapters("a", "b", "a"), "Duplicate value"),
    (adapters("a,b"), "spec.adapters[].name must start and end with a letter or digit"),
    (adapters("a/"), "spec.adapters[].name must start and end with a letter or digit"),
    (adapters("a", hostPath={"path": "/a"}, huggingFace=HUB), "spec.adapters[].source must have exactly one"),
    (adapters("a", persistentVolumeClaim={"claimName": "c", "path": "../a"}), "spec.adapters[].source.persistentVolumeClaim.path must be"),
    (adapters("a", hostPath={"path": "a"}), "spec.adapters[].source.hostPath.path must be absolute"),
    (adapters("a", huggingFace={"repository": "model"}), "spec.adapters[].source.huggingFace.repository must have the form owner/name"),
    (adapters("a", huggingFace={**HUB, "revision": "../x"}), "spec.adapters[].source.huggingFace.revision must be a branch"),
    ({"privacy": {"maxTokenRecoveryPercent": 50}}, "spec.privacy.maxTokenRecoveryPercent needs tokenRecoveryPercent"),
    ({"filter": {"mode": "Cache"}}, 'spec.filter.mode: Unsupported value: "Cache"'),
    ({"filter": {"mode": "Reuse"}}, "spec.filter.mode Reuse with scope Client needs spec.gateway.auth"),
    ({"filter": {"mode": "Reuse", "scope": "All", "afterLayers": 2}}, "spec.filter.mode Reuse needs spec.filter.afterLayers 0"),
    ({"filter": {"afterLayers": -1}}, "spec.filter.afterLayers in body should be greater than or equal to 0"),
    ({"filter": {"scope": "Team"}}, 'spec.filter.scope: Unsupported value: "Team"'),
    ({"filter": {"ttl": "soon"}}, "spec.filter.ttl must be a duration such as 30s or 10m"),
    ({"filter": {"ttl": "200h"}}, "spec.filter.ttl must be between 1s and 168h"),
    ({"filter": {"file": "../filter.json"}}, "spec.filter.file must be the name of a .json file"),
    ({"filter": {"samplePercent": 0}}, "spec.filter.samplePercent must be at least 0.01"),
    ({"filter": {"agreementPercent": 101}}, "spec.filter.agreementPercent in body should be less than or equal to 100"),
    ({"reuse": {}}, "spec.reuse with scope Client needs spec.gateway.auth"),
    ({"reuse": {"scope": "Client"}, "gateway": {"auth": {}}}, "spec.reuse with scope Client needs spec.gateway.auth"),
    (reuse(ttl="soon"), "spec.reuse.ttl must be a duration such as 30s"),
    (reuse(ttl="500ms"), "spec.reuse.ttl must be between 1s and 168h"),
    (reuse(ttl="169h"), "spec.reuse.ttl must be between 1s and 168h"),
    (reuse(memoryMiB=7), "spec.reuse.memoryMiB in body should be greater than or equal to 8"),
    (reuse(scope="Tenant"), 'spec.reuse.scope: Unsupported value: "Tenant"'),
    (reuse(server={"url": "http://cache:6379"}), "spec.reuse.server.url must be redis://, rediss://, valkey:// or valkeys://"),
    (reuse(server={"url": "redis://:secret@cache:6379"}), "spec.reuse.server.url must be redis://, rediss://, valkey:// or valkeys://"),
    ({"verification": {"samplePercent": 0}}, "spec.verification.samplePercent must be more than 0"),
    ({"verification": {"samplePercent": 1, "tolerance": 0}}, "spec.verification.tolerance must be more than 0"),
    ({"verification": {"samplePercent": 1, "replicas": 2}}, "spec.verification.replicas 2 compares every step"),
    ({"verification": {"samplePercent": 100, "replicas": 3}}, "should be less than or equal to 2"),
    (
        {"verification": {"samplePercent": 1}, "segments": {"linkEncoding": "Int8"}},
        "spec.verification needs spec.segments.linkEncoding Plain",
    ),
    (
        {"verification": {"samplePercent": 1}, "segments": {"linkEncoding": "Auto"}},
        "spec.verification needs spec.segments.linkEncoding Plain",
    ),
    (
        {"reuse": {"scope": "All"}, "segments": {"linkEncoding": "Auto"}},
        "spec.reuse needs spec.segments.linkEncoding Plain or Int8",
    ),
    ({"workload": {"promptTokens": 2000, "outputTokens": 49}}, "promptTokens + outputTokens must be at most spec.model.maxContextTokens"),
    ({"partition": {"minSegments": 3}, "placement": {"maxNodes": 2}}, "spec.partition.minSegments must be at most spec.placement.maxNodes"),
    ({"objective": {"goal": "carbon"}}, "Unsupported value"),
    ({"objective": {"goal": "cost", "then": ["cost"]}}, "spec.objective.then must name other goals than spec.objective.goal"),
    ({"objective": {"goal": "cost", "then": ["latency", "latency"]}}, "Duplicate value"),
    ({"objective": {"goal": "cost", "then": ["throughput"]}}, "Unsupported value"),
    ({"objective": {"goal": "cost", "weights": {"move": 1}}}, "spec.objective.weights are in ms"),
    ({"objective": {"then": ["cost"], "weights": {"utilization": 1}}}, "spec.objective.weights are in ms"),
    ({"objective": {"goal": "throughput", "maxWatts": 5}}, "spec.objective.goal throughput uses each node that adds to it"),
    ({"objective": {"goal": "throughput", "then": ["cost"]}}, "spec.objective.goal throughput uses each node that adds to it"),
    ({"objective": {"maxCostPerHour": 0}}, "spec.objective.maxCostPerHour must be more than 0"),
    ({"objective": {"maxWatts": 0}}, "spec.objective.maxWatts must be more than 0"),
    ({"objective": {"then": ["cost"]}, "replicas": 2}, "spec.objective.then is for one pipeline: spec.replicas must be 1"),
    ({"objective": {"goal": "throughput"}, "replicas": 2}, "spec.objective.goal throughput chooses the number of pipelines"),
    ({"scaling": {"min": 3, "max": 2}}, "spec.scaling.min must be at most spec.scaling.max"),
    ({"scaling": {"min": 2}}, "spec.scaling.max: Required value"),
    ({"scaling": {"max": 0}}, "spec.scaling.max in body should be greater than or equal to 1"),
    ({"scaling": {"max": 17}}, "spec.scaling.max in body should be less than or equal to 16"),
    ({"scaling": {"min": -1, "max": 2}}, "spec.scaling.min in body should be greater than or equal to 0"),
    ({"scaling": {"max": 2, "targetPercent": 5}}, "spec.scaling.targetPercent in body should be greater than or equal to 10"),
    ({"scaling": {"max": 2, "downAfter": "soon"}}, "spec.scaling.downAfter must be a duration"),
    ({"scaling": {"max": 2, "idleAfter": "1d"}}, "spec.scaling.idleAfter must be a duration"),
    ({"scaling": {"max": 2, "hold": "0s"}}, "spec.scaling.hold must be a duration above 0"),
    ({"scaling": {"max": 2}, "objective": {"then": ["cost"]}}, "spec.objective.then is for one pipeline: spec.scaling.max must be 1"),
    ({"scaling": {"max": 2}, "objective": {"goal": "throughput"}}, "spec.scaling contradicts spec.objective.goal throughput"),
    ({"scaling": {"min": 0, "max": 1}, "verification": {"samplePercent": 1}}, "spec.scaling.min must be at least 1 with spec.verification"),
    (
        {"scaling": {"max": 2}, "partition": {"pins": [{"layers": "first", "node": "a"}]}},
        "spec.scaling.max must be 1 with spec.partition.pins",
    ),
    (
        {"scaling": {"max": 2}, "partition": {"minSegments": 2}, "placement": {"maxNodes": 3}},
        "spec.scaling.max times spec.partition.minSegments must be at most spec.placement.maxNodes",
    ),
    ({"replicas": 0}, "spec.replicas in body should be greater than or equal to 1"),
    ({"replicas": 17}, "spec.replicas in body should be less than or equal to 16"),
    (
        {"replicas": 2, "partition": {"pins": [{"layers": "first", "node": "a"}]}},
        "spec.replicas must be 1 with spec.partition.pins",
    ),
    (
        {"replicas": 2, "partition": {"minSegments": 2}, "placement": {"maxNodes": 3}},
        "spec.replicas times spec.partition.minSegments must be at most spec.placement.maxNodes",
    ),
    ({"operatorClass": "Edge!"}, "spec.operatorClass must be lower-case letters, digits and '-'"),
    (model(id="-m"), "spec.model.id must start with a letter or digit"),
    (model(id=""), "spec.model.id"),
    (model(digest="sha256:" + "A" * 64), "spec.model.digest must be sha256: and 64 hexadecimal digits"),
    (model(digest="5" * 64), "spec.model.digest must be sha256: and 64 hexadecimal digits"),
    (model(engine="Onnx"), 'spec.model.engine: Unsupported value: "Onnx"'),
    (model(engine="Torch", file="m.gguf"), "spec.model.file names a GGUF file, which needs spec.model.engine Auto or LlamaCpp"),
    (model(file="../m.gguf"), "spec.model.file must be the path of a .gguf file"),
    (model(file="m.bin.x"), "spec.model.file must be the path of a .gguf file"),
    (model(engine="Torch", source={"hostPath": {"path": "/m/x.gguf"}}), "spec.model.source.hostPath names a GGUF file, which needs"),
    (
        model(engine="Torch", source={"persistentVolumeClaim": {"claimName": "c", "path": "x.gguf"}}),
        "spec.model.source.persistentVolumeClaim names a GGUF file, which needs",
    ),
    (model(file="m.gguf", source={"hostPath": {"path": "/m/x.gguf"}}), "spec.model.file must not be set where spec.model.source.hostPath"),
    (
        model(file="m.gguf", source={"persistentVolumeClaim": {"claimName": "c", "path": "x.gguf"}}),
        "spec.model.file must not be set where spec.model.source.persistentVolumeClaim",
    ),
    (model(engine="LlamaCpp", maxConcurrentSequences=59), "spec.model.maxConcurrentSequences must be at most 58 with llama.cpp"),
    (model(engine="LlamaCpp", digest="sha256:" + "a" * 64), "spec.model.digest is available for safetensors alone"),
    (model(encryption=locked(url="http://kbs:8080")), "spec.model.encryption.keyBroker.url must be an https:// address"),
    (model(encryption=locked(url="https://user@kbs:8080")), "spec.model.encryption.keyBroker.url must be an https:// address"),
    (model(encryption=locked(resource="models/chat")), "spec.model.encryption.keyBroker.resource must be repository/type/tag"),
    (model(encryption=locked(resource="a/../b/c")), "spec.model.encryption.keyBroker.resource must be repository/type/tag"),
    (model(encryption=locked(), file="m.gguf"), "spec.model.encryption is available for safetensors alone"),
    (model(encryption=locked(), engine="LlamaCpp"), "spec.model.encryption is available for safetensors alone"),
    (model(encryption=locked(), digest="sha256:" + 64 * "0"), "spec.model.digest must not be set with spec.model.encryption"),
    (model(file="m.gguf") | {"verification": {"samplePercent": 1}}, "spec.verification needs spec.model.engine Torch"),
    (model(engine="LlamaCpp") | {"segments": {"weights": "Stored"}}, "spec.segments.weights Stored needs spec.model.engine Torch"),
    (model(engine="LlamaCpp", weights="Int8"), "spec.model.weights Int8 and Int4 are for safetensors"),
    (model(file="m.gguf", weights="Int4"), "spec.model.weights Int8 and Int4 are for safetensors"),
    (model(weights="Int4", source={"hostPath": {"path": "/m/x.gguf"}}), "spec.model.weights Int8 and Int4 are for safetensors"),
    (
        model(weights="Int8", source={"persistentVolumeClaim": {"claimName": "c", "path": "x.gguf"}}),
        "spec.model.weights Int8 and Int4 are for safetensors",
    ),
    (model(weights="Int4") | {"segments": {"weights": "Stored"}}, "spec.segments.weights Stored needs spec.model.weights AsStored"),
    (model(weights="Int8") | {"verification": {"samplePercent": 1}}, "spec.verification needs spec.model.weights AsStored"),
    (model(weights="int8"), 'spec.model.weights: Unsupported value: "int8"'),
    (model(dtype="int8"), 'spec.model.dtype: Unsupported value: "int8"'),
    (model(maxContextTokens=8), "spec.model.maxContextTokens in body should be greater than or equal to 16"),
    (model(maxConcurrentSequences=0), "spec.model.maxConcurrentSequences in body should be greater than or equal to 1"),
    (source(), "spec.model.source must have exactly one of persistentVolumeClaim, hostPath and huggingFace"),
    (source(hostPath={"path": "/m"}, huggingFace=HUB), "spec.model.source must have exactly one"),
    (source(persistentVolumeClaim={"claimName": "c", "path": "/m"}), "persistentVolumeClaim.path must be relative"),
    (source(persistentVolumeClaim={"claimName": "c", "path": "a/../../m"}), "persistentVolumeClaim.path must be relative"),
    (source(hostPath={"path": "models"}), "spec.model.source.hostPath.path must be absolute"),
    (source(hostPath={"path": "/models/../etc"}), "hold no '..'"),
    (source(huggingFace={"repository": "model"}), "huggingFace.repository must have the form owner/name"),
    (source(huggingFace={**HUB, "revision": "../x"}), "huggingFace.revision must be a branch, tag or commit"),
    ({"slo": {"timeToFirstToken": "800"}}, "spec.slo.timeToFirstToken must be a duration such as 800ms or 1.5s"),
    ({"slo": {"timeToFirstToken": "0s"}}, "spec.slo.timeToFirstToken must be at least 1ms"),
    ({"slo": {"timePerOutputToken": "fast"}}, "spec.slo.timePerOutputToken must be a duration such as 40ms"),
    ({"slo": {"timePerOutputToken": "0ms"}}, "spec.slo.timePerOutputToken must be at least 1ms"),
    ({"objective": {"goal": "cheap"}}, 'spec.objective.goal: Unsupported value: "cheap"'),
    ({"objective": {"weights": {"utilization": -1}}}, "spec.objective.weights.utilization in body should be greater than or equal to 0"),
    ({"partition": {"minSegments": 3, "maxSegments": 2}}, "spec.partition.minSegments must be at most spec.partition.maxSegments"),
    (
        {"partition": {"minSegments": 3, "allowedSplitPoints": [4]}},
        "must be at most one more than the number of spec.partition.allowedSplitPoints",
    ),
    ({"partition": {"allowedSplitPoints": [0]}}, "spec.partition.allowedSplitPoints[0] in body should be greater than or equal to 1"),
    ({"partition": {"allowedSplitPoints": [4, 4]}}, "spec.partition.allowedSplitPoints[1]: Duplicate value: 4"),
    (pin("middle"), "spec.partition.pins[].layers must be first, last or start:end such as 0:4"),
    (pin("4:4"), "spec.partition.pins[].layers start:end must hold a layer: start must be less than end"),
    (
        {"partition": {"pins": [{"layers": "first", "node": "a"}, {"layers": "first", "node": "b"}]}},
        "spec.partition.pins must not pin the same layers to two nodes",
    ),
    ({"privacy": {"onViolation": "Ignore"}}, 'spec.privacy.onViolation: Unsupported value: "Ignore"'),
    (rule("4"), "spec.privacy.rules[].layers must be first, last or start:end such as 0:4"),
    (rule("10:9"), "spec.privacy.rules[].layers start:end must hold a layer: start must be less than end"),
    ({"privacy": {"rules": [{"layers": "first", "nodeLabels": {}}]}}, "spec.privacy.rules[0].nodeLabels"),
    (rule("first", "Kata_QEMU"), "spec.privacy.rules[].runtimeClassName must be the name of a RuntimeClass"),
    (
        {"privacy": {"rules": [*rule("first", "kata-a")["privacy"]["rules"], *rule("last", "kata-b")["privacy"]["rules"]]}},
        "spec.privacy.rules must name at most one runtimeClassName",
    ),
    (tolerate(operator="Exists", key="a", value="b"), "spec.placement.tolerations[].value must be empty when operator is Exists"),
    (tolerate(value="b"), "spec.placement.tolerations[].key must be given unless operator is Exists"),
    (tolerate(key="a", effect="Never"), 'effect: Unsupported value: "Never"'),
    ({"placement": {"processorClasses": []}}, "spec.placement.processorClasses in body should have at least 1 items"),
    ({"placement": {"processorClasses": ["NVIDIA GPU"]}}, "spec.placement.processorClasses[0] in body should match"),
    ({"placement": {"processorClasses": ["cuda", "cuda"]}}, "spec.placement.processorClasses[1]: Duplicate value"),
    ({"placement": {"maxNodes": 0}}, "spec.placement.maxNodes in body should be greater than or equal to 1"),
    ({"gateway": {"replicas": 5}}, "spec.gateway.replicas must be at most spec.model.maxConcurrentSequences"),
    ({"gateway": {"replicas": 0}}, "spec.gateway.replicas in body should be greater than or equal to 1"),
    (
        {"gateway": {"auth": {"apiKeysSecretRef": {"name": "a"}, "tokenReview": {}}}},
        "spec.gateway.auth must have at most one of apiKeysSecretRef and tokenReview",
    ),
    ({"gateway": {"auth": {"apiKeysSecretRef": {}}}}, "spec.gateway.auth.apiKeysSecretRef.name: Required value"),
    ({"segments": {"threads": 0}}, "spec.segments.threads in body should be greater than or equal to 1"),
    ({"segments": {"linkEncoding": "Int4"}}, 'spec.segments.linkEncoding: Unsupported value: "Int4"'),
    ({"segments": {"memoryMarginPercent": 101}}, "spec.segments.memoryMarginPercent in body should be less than or equal to 100"),
    ({"adaptation": {"mode": "Manual"}}, 'spec.adaptation.mode: Unsupported value: "Manual"'),
    ({"adaptation": {"strategy": "Recreate"}}, 'spec.adaptation.strategy: Unsupported value: "Recreate"'),
    ({"adaptation": {"prefetch": "All"}}, 'spec.adaptation.prefetch: Unsupported value: "All"'),
    ({"adaptation": {"thresholds": {"utilizationPercent": 0}}}, "spec.adaptation.thresholds.utilizationPercent in body should be greater"),
    ({"adaptation": {"window": "60"}}, "spec.adaptation.window must be a duration such as 30s or 5m"),
    ({"adaptation": {"window": "500ms"}}, "spec.adaptation.window must be from 1s to 1h"),
    ({"adaptation": {"window": "61m"}}, "spec.adaptation.window must be from 1s to 1h"),
    ({"adaptation": {"cooldown": "1d"}}, "spec.adaptation.cooldown must be a duration such as 30s or 5m"),
    ({"adaptation": {"cooldown": "25h"}}, "spec.adaptation.cooldown must be at most 24h"),
    ({"adaptation": {"drain": "soon"}}, "spec.adaptation.drain must be a duration such as 30s or 5m"),
    ({"adaptation": {"drain": "11m"}}, "spec.adaptation.drain must be at most 10m"),
    ({"adaptation": {"window": "5s", "confirmations": 6}}, "spec.adaptation.window must hold spec.adaptation.confirmations"),
    ({"adaptation": {"maxMovesPerHour": 0}}, "spec.adaptation.maxMovesPerHour 0 contradicts mode Auto"),
    ({"adaptation": {"maxMovesPerHour": -1}}, "spec.adaptation.maxMovesPerHour in body should be greater than or equal to 0"),
    ({"adaptation": {"stabilization": "ten"}}, "spec.adaptation.stabilization must be a duration such as 30s or 5m"),
    ({"adaptation": {"stabilization": "24h1ms"}}, "spec.adaptation.stabilization must be at most 24h"),
    ({"adaptation": {"cooldown": "-5m"}}, "spec.adaptation.cooldown must be a duration such as 30s or 5m"),
    ({"adaptation": {"window": "1e9h"}}, "spec.adaptation.window must be a duration such as 30s or 5m"),
    ({"slo": {"timePerOutputToken": "-40ms"}}, "spec.slo.timePerOutputToken must be a duration such as 40ms"),
    ({"adaptation": {"confirmations": 0}}, "spec.adaptation.confirmations in body should be greater than or equal to 1"),
    (
        template("segments", labels={"app.kubernetes.io/name": "x"}),
        "spec.podTemplate.segments.labels must leave keys of splitinference.dev/",
    ),
    (
        template("segments", annotations={"splitinference.dev/left": "x"}),
        "spec.podTemplate.segments.annotations must leave keys of splitinference.dev/",
    ),
    (template("segments", env=[{"name": "SI_SEGMENT"}]), "spec.podTemplate.segments.env[].name must not be SI_*, HOME, USER or HF_TOKEN"),
    (
        template("segments", env=[{"name": "A", "value": "b", "valueFrom": {}}]),
        "spec.podTemplate.segments.env[] must have at most one of value and valueFrom",
    ),
    (template("gateway", labels={"app.kubernetes.io/name": "x"}), "spec.podTemplate.gateway.labels must leave keys of splitinference.dev/"),
    (
        template("gateway", annotations={"splitinference.dev/left": "x"}),
        "spec.podTemplate.gateway.annotations must leave keys of splitinference.dev/",
    ),
    (template("gateway", env=[{"name": "SI_SEGMENT"}]), "spec.podTemplate.gateway.env[].name must not be SI_*, HOME, USER or HF_TOKEN"),
    (
        template("gateway", env=[{"name": "A", "value": "b", "valueFrom": {}}]),
        "spec.podTemplate.gateway.env[] must have at most one of value and valueFrom",
    ),
    (template("segments", env=[{"name": "A"}, {"name": "A"}]), "spec.podTemplate.segments.env[1]: Duplicate value"),
    (template("segments", securityContext={"runAsUser": 0}), "spec.podTemplate.segments.securityContext.runAsUser"),
    (template("segments", dnsPolicy="Any"), 'spec.podTemplate.segments.dnsPolicy: Unsupported value: "Any"'),
    ({"adaptation": {"minGainPercent": 101}}, "spec.adaptation.minGainPercent in body should be less than or equal to 100"),
]
