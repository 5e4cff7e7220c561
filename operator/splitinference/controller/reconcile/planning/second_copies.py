"""What checks segments, in the core's terms: how many further copies of their layers there are, and what such pods hold now."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from splitinference.controller.api.spec import Spec
from splitinference.controller.cluster_state.pods import labels_of, node_of, requested_bytes, requested_millicores
from splitinference.controller.manifests.pod_parts import COMPONENT
from splitinference.controller.manifests.segment import VERIFIER
from splitinference.controller.ports import Manifest
from splitinference.core.values.room import SecondCopies


def second_copies(spec: Spec, owned: Sequence[Manifest], avoided: Mapping[str, str], millicores: int) -> SecondCopies | None:
    """None where nothing is verified. `owned`: the resource's pods; `avoided`: nodes whose output was wrong; `millicores`: each pod's
    request."""
    if spec.verification is None:
        return None
    held, cores = Counter[str](), Counter[str]()
    for pod in verifier_pods(owned):
        held[node_of(pod)] += requested_bytes(pod)
        cores[node_of(pod)] += requested_millicores(pod)
    return SecondCopies(
        trusted=spec.privacy.trusted_node_labels,
        replicas=spec.verification.replicas,
        millicores=millicores,
        held=dict(held),
        held_millicores=dict(cores),
        avoided=frozenset(avoided),
    )


def verifier_pods(owned: Sequence[Manifest]) -> Iterator[Manifest]:
    """Those that do not end."""
    mine = (pod for pod in owned if labels_of(pod).get(COMPONENT) == VERIFIER)
    return (pod for pod in mine if not pod["metadata"].get("deletionTimestamp"))


def verifier_nodes(owned: Sequence[Manifest]) -> Mapping[str, str]:
    """Name to node."""
    return {str(pod["metadata"]["name"]): node_of(pod) for pod in verifier_pods(owned)}
