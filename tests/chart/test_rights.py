"""The chart's rights and network policies: what the operator may do, and who reaches it."""

from typing import Any

from splitinference.controller.manifests.segment import Manifests
from splitinference.settings import Settings
from tests.chart.rendered import PREFIX, PROBE, allowed, container, only, policy, render, settings
from tests.controller.manifests.built import a_profile, a_resource
from tests.controller.objects import parsed


def test_no_right_is_a_wildcard():
    for sets in ((), ("watchNamespaces={a}",)):
        for obj in render(*sets):
            if obj["kind"] in ("Role", "ClusterRole"):
                assert not any("*" in right for right in allowed(obj["rules"]))


def test_the_operator_may_make_what_it_makes():
    rights = allowed(only("ClusterRole")["rules"])
    builder = Manifests(Settings(network_policies=True))
    plurals = {"NetworkPolicy": "networkpolicies", "PodDisruptionBudget": "poddisruptionbudgets"}
    for obj in [*builder.gateway(parsed(a_resource()), a_profile()), builder.route(parsed(a_resource()), {})]:
        version = obj["apiVersion"]
        group = version.split("/")[0] if "/" in version else ""
        plural = plurals.get(obj["kind"], obj["kind"].lower() + "s")
        assert {(group, plural, verb) for verb in ("create", "patch", "get")} <= rights, obj["kind"]


def test_the_operator_may_delete_the_network_policy_of_verifiers_that_are_gone():
    assert ("networking.k8s.io", "networkpolicies", "delete") in allowed(only("ClusterRole")["rules"])


def test_the_operator_has_each_right_that_it_gives_to_a_gateway():
    rights = allowed(only("ClusterRole")["rules"])
    (role,) = [obj for obj in Manifests(Settings()).gateway(parsed(a_resource()), a_profile()) if obj["kind"] == "Role"]
    assert allowed(role["rules"]) <= rights


def test_in_some_namespaces_alone_it_writes_nowhere_else():
    sets = ("watchNamespaces={a,b}",)
    assert all(verb in ("get", "list", "watch") for _, _, verb in allowed(only("ClusterRole", *sets)["rules"]))
    roles = [obj for obj in render(*sets) if obj["kind"] == "Role"]
    assert [role["metadata"]["namespace"] for role in roles if role["metadata"]["namespace"] != "ops"] == ["a", "b"]


def test_no_secret_is_read_but_the_operators_own():
    for sets in ((), ("watchNamespaces={a,b}",)):
        for obj in render(*sets):
            for rule in obj["rules"] if obj["kind"] in ("Role", "ClusterRole") else ():
                if "secrets" in rule["resources"] and set(rule["verbs"]) - {"create", "patch"}:
                    assert obj["metadata"]["namespace"] == "ops"
                    assert rule["resourceNames"] == [Settings.model_construct().root_key_secret]


def secret_rights(role: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """Each verb with the names that it is limited to."""
    return sorted(
        (verb, rule.get("resourceNames", [])) for rule in role["rules"] if "secrets" in rule["resources"] for verb in rule["verbs"]
    )


def test_secrets_are_written_for_certificates_and_never_read():
    assert secret_rights(only("ClusterRole")) == [("create", []), ("patch", [])]


def test_the_root_key_is_the_one_secret_of_its_own_namespace_that_the_operator_reads():
    (role,) = [obj for obj in render() if obj["kind"] == "Role" and obj["metadata"]["name"].endswith("-root-key")]
    assert role["metadata"]["namespace"] == "ops"
    assert secret_rights(role) == [("create", []), ("get", [Settings.model_construct().root_key_secret])]
    (binding,) = [obj for obj in render() if obj["kind"] == "RoleBinding" and obj["metadata"]["name"].endswith("-root-key")]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert binding["subjects"] == only("ClusterRoleBinding")["subjects"]
    (space,) = [entry for entry in container()["env"] if entry["name"] == f"{PREFIX}OPERATOR_NAMESPACE"]
    assert space["value"] == "ops"


def test_only_monitoring_reaches_the_operator():
    spec = policy("-operator")["spec"]
    assert spec["podSelector"]["matchLabels"].items() <= only("Deployment")["spec"]["template"]["metadata"]["labels"].items()
    assert spec["policyTypes"] == ["Ingress"]
    (rule,) = spec["ingress"]
    assert rule["from"] == [{"namespaceSelector": Settings.model_construct().monitoring_namespace_selector.as_json()}]
    assert [port["port"] for port in rule["ports"]] == ["metrics"]


def test_policies_of_resources_admit_the_operator_that_the_chart_makes():
    objects = Manifests(Settings(operator_namespace="ops")).gateway(parsed(a_resource()), a_profile())
    policies = [obj["spec"]["ingress"] for obj in objects if obj["kind"] == "NetworkPolicy"]
    who = [peer for ingress in policies for rule in ingress for peer in rule.get("from", []) if len(peer) == 2]
    assert len(who) == 2
    labels = only("Deployment")["spec"]["template"]["metadata"]["labels"]
    assert all(peer["podSelector"]["matchLabels"].items() <= labels.items() for peer in who)
    assert all(peer["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "ops"} for peer in who)


def test_without_policies_there_are_none():
    assert not any(obj["kind"] == "NetworkPolicy" for obj in render(PROBE, "networkPolicies.enabled=false"))
    assert "networkpolicies" not in {plural for _, plural, _ in allowed(only("ClusterRole", "networkPolicies.enabled=false")["rules"])}


def test_all_namespaces_may_scrape_where_that_is_said():
    spec = policy("-operator", "networkPolicies.monitoringNamespaceSelector.matchLabels=null")["spec"]
    assert spec["ingress"][0]["from"] == [{"namespaceSelector": {}}]


def test_an_account_of_ones_own_is_taken():
    kinds = {obj["kind"] for obj in render("serviceAccount.name=mine")}
    assert "ServiceAccount" not in kinds
    assert only("ClusterRoleBinding", "serviceAccount.name=mine")["subjects"][0]["name"] == "mine"
    assert only("Deployment", "serviceAccount.name=mine")["spec"]["template"]["spec"]["serviceAccountName"] == "mine"


def test_only_the_gateways_that_are_named_may_review_tokens():
    assert not [obj for obj in render() if "token-review" in obj["metadata"]["name"]]
    asked = ("tokenReview.gateways[0].namespace=team", "tokenReview.gateways[0].name=chat")
    role, binding = [obj for obj in render(*asked) if "token-review" in obj["metadata"]["name"]]
    assert role["rules"] == [{"apiGroups": ["authentication.k8s.io"], "resources": ["tokenreviews"], "verbs": ["create"]}]
    account = {obj["kind"]: obj for obj in Manifests(Settings()).gateway(parsed(a_resource()), a_profile())}["ServiceAccount"]["metadata"]
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": account["name"], "namespace": account["namespace"]}]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]


def test_measuring_nodes_takes_rights_in_the_operators_namespace_alone_and_gives_way():
    name = "si-splitinference-measure"
    (role,) = [obj for obj in render("watchNamespaces={a}") if obj["kind"] == "Role" and obj["metadata"]["name"] == name]
    assert role["metadata"]["namespace"] == "ops"
    assert {resource for rule in role["rules"] for resource in rule["resources"]} == {"pods", "configmaps"}
    assert not [
        rule
        for obj in render()
        if obj["kind"] == "ClusterRole"
        for rule in obj["rules"]
        if "nodes" in rule["resources"] and "patch" in rule["verbs"]
    ]
    assert (only("PriorityClass")["value"], only("PriorityClass")["preemptionPolicy"]) == (-1000000, "Never")
    off = render("measureNodes.enabled=false")
    assert not [obj for obj in off if obj["metadata"]["name"] == name or obj["kind"] == "PriorityClass"]
    assert settings("measureNodes.enabled=false")[f"{PREFIX}MEASURE_NODES"] == "false"


def test_the_operator_may_list_events_and_keep_what_it_owns():
    rights = allowed(only("ClusterRole")["rules"])
    assert ("", "events", "list") in rights
    for group, plural in (("rbac.authorization.k8s.io", "roles"), ("policy", "poddisruptionbudgets"), ("", "services")):
        assert {(group, plural, verb) for verb in ("list", "watch", "create", "patch")} <= rights
    assert not any(
        resource == "poddisruptionbudgets" for _, resource, _ in allowed(only("ClusterRole", "disruption.budgets=false")["rules"])
    )


def test_an_issuer_needs_its_secret_and_the_root_key_to_be_written():
    """And nothing more: the certificate's Secret is read by name, and cert-manager writes it."""
    objects = render("identity.certManager.issuerRef.name=company", "identity.certManager.issuerRef.kind=ClusterIssuer")
    (certificate,) = [obj for obj in objects if obj["kind"] == "Certificate"]
    assert certificate["spec"]["isCA"] is True
    assert certificate["spec"]["issuerRef"] == {"name": "company", "kind": "ClusterIssuer", "group": "cert-manager.io"}
    (role,) = [obj for obj in objects if obj["kind"] == "Role" and obj["metadata"]["name"].endswith("-root-key")]
    given = {(name, verb) for rule in role["rules"] for name in rule.get("resourceNames", [""]) for verb in rule["verbs"]}
    root, issuer = "splitinference-root-key", certificate["spec"]["secretName"]
    assert given == {(root, "get"), (root, "update"), (issuer, "get"), ("", "create")}
    (deployment,) = [obj for obj in objects if obj["kind"] == "Deployment" and obj["metadata"]["name"].endswith("-operator")]
    environment = deployment["spec"]["template"]["spec"]["containers"][0]["env"]
    assert {"name": "SPLITINFERENCE_ISSUER_SECRET", "value": issuer} in environment
