"""Which labels a node may give itself: a rule of privacy that trusts such a label trusts every node that is broken into.

The rules are those of Kubernetes' admission plugin NodeRestriction, for what a kubelet may change on its own Node object.
"""

from collections.abc import Iterable

from splitinference.controller.api.conditions import Condition, Kind
from splitinference.controller.api.sections.privacy_spec import TRUSTED, PrivacyRule

PROTECTED = "node-restriction.kubernetes.io"

_RESERVED = ("kubernetes.io", "k8s.io")
"""Domains whose labels a kubelet may not change, but for those below."""
_KUBELETS = frozenset(
    {
        "kubernetes.io/hostname",
        "kubernetes.io/os",
        "kubernetes.io/arch",
        "beta.kubernetes.io/os",
        "beta.kubernetes.io/arch",
        "beta.kubernetes.io/instance-type",
        "node.kubernetes.io/instance-type",
        "topology.kubernetes.io/zone",
        "topology.kubernetes.io/region",
        "failure-domain.beta.kubernetes.io/zone",
        "failure-domain.beta.kubernetes.io/region",
    }
)
_KUBELETS_DOMAINS = ("kubelet.kubernetes.io", "node.kubernetes.io")


def settable_by_node(key: str) -> bool:
    """Whether NodeRestriction lets a kubelet set this label on its own node."""
    domain = key.partition("/")[0] if "/" in key else ""
    if _within(domain, (PROTECTED,)):
        return False
    return not _within(domain, _RESERVED) or key in _KUBELETS or _within(domain, _KUBELETS_DOMAINS)


def trusted_labels(rules: Iterable[PrivacyRule], trusted: Iterable[str] = ()) -> Condition | None:
    """Whether the rules use labels that nodes cannot give themselves; None where there are no rules. `trusted`: further labels that count,
    those of trusted nodes where something depends on them."""
    kind, used = Kind.PRIVACY_LABELS_TRUSTED, sorted({*trusted, *(key for rule in rules for key in rule.node_labels)})
    if not used:
        return None
    if found := [key for key in used if settable_by_node(key)]:
        message = (
            f"spec.privacy uses {', '.join(found)}. A kubelet may set this label on its own node, so a node that is broken into can "
            f"make itself trusted. Use labels that begin with {PROTECTED}/, such as {TRUSTED}, and set them with kubectl label node"
        )
        return Condition(kind=kind, holds=False, reason="LabelSettableByNode", message=message)
    message = f"no node can give itself {', '.join(used)}, where the admission plugin NodeRestriction is on"
    return Condition(kind=kind, holds=True, reason="LabelsRestricted", message=message)


def _within(domain: str, parents: Iterable[str]) -> bool:
    return any(domain == parent or domain.endswith(f".{parent}") for parent in parents)
