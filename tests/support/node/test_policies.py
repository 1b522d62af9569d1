"""What a node's NetworkPolicies become: who is let through, and that everybody else is refused."""

from typing import Any

from tests.support.node.policies import chains, selects

NAMESPACES = {"relay": {"team": "a"}, "other": {"team": "b"}}


def pod(name: str, address: str, namespace: str = "relay", **labels: str) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "namespace": namespace, "labels": {"app": name, **labels}},
        "spec": {"containers": [{"ports": [{"name": "rpc", "containerPort": 7001}]}]}, "status": {"podIP": address},
    }


PODS = [pod("store", "10.0.0.1"), pod("room", "10.0.0.2"), pod("stranger", "10.0.0.3", "other")]


def rules(**spec: Any) -> list[str]:
    policy = {"metadata": {"namespace": "relay"}, "spec": {"podSelector": {"matchLabels": {"app": "store"}}, **spec}}
    return [line for line in chains([policy], PODS, NAMESPACES).splitlines() if line.startswith("-A ")][1:]


def ends(lines: list[str]) -> list[str]:
    """The store's chain without its name."""
    return [line.split(" ", 2)[2] for line in lines[1:]]


def test_without_a_policy_everything_is_open() -> None:
    assert chains([], PODS, NAMESPACES).count("REJECT") == 0


def test_an_isolated_pod_refuses_everybody_in_the_directions_named() -> None:
    [jump, refusal] = rules()
    assert "-d 10.0.0.1" in jump
    assert refusal.endswith("REJECT")
    both = rules(policyTypes=["Ingress", "Egress"], egress=[{}])
    assert [line.split()[-1] for line in both if "REJECT" in line or "RETURN" in line] == ["REJECT", "RETURN", "REJECT"]


def test_peers_are_pods_of_the_same_namespace_unless_namespaces_are_selected() -> None:
    everywhere = {"podSelector": {}, "namespaceSelector": {"matchLabels": {"team": "b"}}}
    assert ends(rules(ingress=[{"from": [{"podSelector": {}}]}])) == [
        "-s 10.0.0.1 -j RETURN", "-s 10.0.0.2 -j RETURN", "-j REJECT",
    ]
    assert ends(rules(ingress=[{"from": [everywhere]}])) == ["-s 10.0.0.3 -j RETURN", "-j REJECT"]


def test_ports_by_number_name_and_range() -> None:
    listed = [{"port": "rpc"}, {"port": 53, "protocol": "UDP"}, {"port": 8000, "endPort": 8010}, {"port": "unknown"}]
    assert ends(rules(ingress=[{"ports": listed}])) == [
        "-p tcp --dport 7001 -j RETURN", "-p tcp --dport 8000:8010 -j RETURN", "-p udp --dport 53 -j RETURN", "-j REJECT",
    ]


def test_networks_have_holes() -> None:
    block = {"ipBlock": {"cidr": "10.0.0.0/30", "except": ["10.0.0.0/31"]}}
    assert ends(rules(ingress=[{"from": [block]}])) == ["-s 10.0.0.2/31 -j RETURN", "-j REJECT"]


def test_selectors() -> None:
    def on(operator: str, *values: str) -> bool:
        return selects({"matchExpressions": [{"key": "app", "operator": operator, "values": values}]}, {"app": "room"})

    assert on("In", "room", "store")
    assert not on("NotIn", "room")
    assert on("Exists")
    assert not on("DoesNotExist")
    assert selects({}, {})
