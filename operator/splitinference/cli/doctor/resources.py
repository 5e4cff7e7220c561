"""Checks of nodes and resources: labels that rules ask for, conditions that are not as they should be."""

from collections.abc import Iterator, Mapping, Sequence

from splitinference.cli.doctor.check import BAD, GOOD, WARN, Check, Json
from splitinference.view import ResourceView

_TRUSTED = {"node-restriction.kubernetes.io/splitinference-trusted": "true"}
_MOST = 10


def check_nodes(nodes: Sequence[Json]) -> Iterator[Check]:
    """Nodes are there and ready."""
    if not nodes:
        yield Check("nodes", BAD, "the cluster has no nodes")
        return
    bad = [str(node["metadata"]["name"]) for node in nodes if not _ready(node)]
    cordoned = sum(bool((node.get("spec") or {}).get("unschedulable")) for node in nodes)
    words = f"{len(nodes) - len(bad)} of {len(nodes)} ready, {cordoned} cordoned"
    if bad:
        yield Check(
            "nodes",
            WARN,
            f"{words}; not ready: {', '.join(sorted(bad)[:5])}{' …' if len(bad) > 5 else ''}",
            f"kubectl describe node {sorted(bad)[0]}",
        )
    else:
        yield Check("nodes", GOOD, words)


def _ready(node: Json) -> bool:
    return any(c.get("type") == "Ready" and c.get("status") == "True" for c in (node.get("status") or {}).get("conditions") or ())


def check_labels(resources: Sequence[Json], nodes: Sequence[Json]) -> Iterator[Check]:
    """Each set of labels that a spec asks for is on some node."""
    asked: dict[tuple[tuple[str, str], ...], str] = {}
    for resource in resources:
        about, spec = resource["metadata"], resource.get("spec") or {}
        privacy = spec.get("privacy") or {}
        wanted = [(rule.get("nodeLabels"), "spec.privacy.rules") for rule in privacy.get("rules") or ()]
        wanted += [((spec.get("placement") or {}).get("nodeSelector"), "spec.placement.nodeSelector")]
        wanted += [(privacy.get("trustedNodeLabels") or _TRUSTED, "spec.verification")] if spec.get("verification") else []
        for labels, where in wanted:
            if isinstance(labels, Mapping) and labels:
                asked.setdefault(
                    tuple(sorted((str(k), str(v)) for k, v in labels.items())), f"{about['namespace']}/{about['name']} {where}"
                )
    for labels, where in asked.items():
        having = sum(set(labels) <= {(str(k), str(v)) for k, v in (node["metadata"].get("labels") or {}).items()} for node in nodes)
        words = ",".join(f"{key}={value}" for key, value in labels)
        if having:
            yield Check("labels", GOOD, f"{having} nodes have {words}")
        else:
            yield Check("labels", BAD, f"no node has {words}, which {where} asks for", f"kubectl label node NODE {words.replace(',', ' ')}")


def check_conditions(views: Sequence[ResourceView]) -> Iterator[Check]:
    """Every resource was seen by an operator, and is Ready."""
    bad: list[Check] = []
    for view in views:
        condition = view.condition("Ready")
        stalled = view.condition("Stalled")
        trusted = view.condition("PrivacyLabelsTrusted")
        if condition is None:
            bad.append(
                Check(
                    "resource",
                    BAD,
                    f"{view.title}: no operator has looked at it",
                    "kubectl get deployments -A -l app.kubernetes.io/name=splitinference",
                )
            )
        elif not condition.good:
            why = stalled or condition
            bad.append(
                Check(
                    "resource", BAD, f"{view.title}: {why.reason}: {why.message}", f"kubectl split explain {view.name} -n {view.namespace}"
                )
            )
        if trusted is not None and not trusted.good:
            fix = "Use labels that begin with node-restriction.kubernetes.io/ (docs/concepts/security.md#trusted-nodes)."
            bad.append(Check("privacy labels", WARN, f"{view.title}: {trusted.message}", fix))
    yield from bad[:_MOST]
    if len(bad) > _MOST:
        yield Check("resources", BAD, f"and {len(bad) - _MOST} more", "kubectl get si -A")
    if not bad:
        yield Check("resources", GOOD, f"{len(views)} Ready" if views else "there is none yet")
