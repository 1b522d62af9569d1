"""NetworkPolicies of a node with one network namespace for all, brought into force with iptables; no CNI plugin here does.

    policies.py URL DIRECTORY       DIRECTORY has ca.crt and admin.{crt,key}; standard library only

Every second it reads pods, namespaces and policies and, where something changed, writes the chains anew: one for each
pod and direction that a policy isolates, which lets through what any of them allows and refuses the rest (refused, not
dropped, so that a test need not wait). Connections that stand are left alone, and the node may always connect, as
probes need. A pod is open for the second before it is first seen.
"""

import hashlib
import ipaddress
import json
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

Object = dict[str, Any]

TOP = "SIGNALBOX-POLICIES"
SIDES = {"Ingress": ("-d", "-s", "from"), "Egress": ("-s", "-d", "to")}
"""By direction: the pod's side of a packet, its peer's, and where a rule lists peers."""
OPERATORS = {
    "In": lambda value, values: value in values, "NotIn": lambda value, values: value not in values,
    "Exists": lambda value, _: value is not None, "DoesNotExist": lambda value, _: value is None,
}


def chains(policies: list[Object], pods: list[Object], namespaces: dict[str, dict[str, str]]) -> str:
    """Return the input of `iptables-restore --noflush`. `namespaces` are labels by name."""
    jumps, bodies = [], []
    for pod in sorted(pods, key=_address):
        for direction, (own, _, _) in SIDES.items():
            isolating = [p for p in policies if _isolates(p, pod, direction)]
            if isolating:
                name = direction[:2].upper() + "-" + hashlib.sha256(_address(pod).encode()).hexdigest()[:16]
                jumps.append(f"-A {TOP} {own} {_address(pod)} -j {name}")
                allowed = {m for p in isolating for m in _allowed(p, pod, direction, pods, namespaces)}
                bodies += [f":{name} - [0:0]", *(f"-A {name} {m} -j RETURN" for m in sorted(allowed)), f"-A {name} -j REJECT"]
    heads = [line for line in bodies if line.startswith(":")]
    rules = [line for line in bodies if not line.startswith(":")]
    standing = f"-A {TOP} -m conntrack --ctstate ESTABLISHED,RELATED -j RETURN"
    return "\n".join(["*filter", f":{TOP} - [0:0]", *heads, standing, *jumps, *rules, "COMMIT", ""])


def _isolates(policy: Object, pod: Object, direction: str) -> bool:
    spec = policy["spec"]
    return (
        policy["metadata"]["namespace"] == pod["metadata"]["namespace"]
        and direction in spec.get("policyTypes", ["Ingress"])
        and selects(spec.get("podSelector", {}), pod["metadata"].get("labels", {}))
    )


def _allowed(
    policy: Object, pod: Object, direction: str, pods: list[Object], namespaces: dict[str, dict[str, str]],
) -> Iterator[str]:
    """Yield iptables' matches of what one policy lets through, to or from one pod."""
    _, flag, listed = SIDES[direction]
    for rule in policy["spec"].get(direction.lower()) or ():
        for network, peer in _peers(rule.get(listed), policy["metadata"]["namespace"], pods, namespaces):
            for port in _ports(rule.get("ports"), pod if direction == "Ingress" else peer):
                yield " ".join(part for part in (f"{flag} {network}" if network else "", port) if part)


def _peers(
    listed: list[Object] | None, namespace: str, pods: list[Object], namespaces: dict[str, dict[str, str]],
) -> Iterator[tuple[str, Object | None]]:
    """Yield (network, pod): "" for everybody, no pod where a network is meant."""
    if not listed:
        yield "", None
    for peer in listed or ():
        if block := peer.get("ipBlock"):
            yield from ((str(n), None) for n in _without(block["cidr"], block.get("except", ())))
            continue
        for pod in pods:
            meta = pod["metadata"]
            if "namespaceSelector" in peer:
                here = selects(peer["namespaceSelector"], namespaces.get(meta["namespace"], {}))
            else:
                here = meta["namespace"] == namespace
            if here and selects(peer.get("podSelector", {}), meta.get("labels", {})):
                yield _address(pod), pod


def _without(network: str, holes: list[str]) -> list[ipaddress.IPv4Network]:
    left = [n for n in (ipaddress.ip_network(network, strict=False),) if isinstance(n, ipaddress.IPv4Network)]
    for hole in map(ipaddress.ip_network, holes):
        if isinstance(hole, ipaddress.IPv4Network):
            left = [part for n in left for part in (n.address_exclude(hole) if hole.subnet_of(n) else (n,))]
    return left


def _ports(listed: list[Object] | None, target: Object | None) -> Iterator[str]:
    if not listed:
        yield ""
    for entry in listed or ():
        protocol, port = entry.get("protocol", "TCP"), entry.get("port")
        for number in _named(port, protocol, target) if isinstance(port, str) else (port,):
            last = f":{entry['endPort']}" if "endPort" in entry else ""
            yield f"-p {protocol.lower()}" + (f" --dport {number}{last}" if number else "")


def _named(name: str, protocol: str, pod: Object | None) -> list[int]:
    return [
        port["containerPort"] for container in (pod or {"spec": {"containers": ()}})["spec"]["containers"]
        for port in container.get("ports", ())
        if port.get("name") == name and port.get("protocol", "TCP") == protocol
    ]


def selects(selector: Object, labels: dict[str, str]) -> bool:
    """Whether a label selector takes these labels; an empty one takes all."""
    return all(labels.get(k) == v for k, v in selector.get("matchLabels", {}).items()) and all(
        OPERATORS[e["operator"]](labels.get(e["key"]), e.get("values", ())) for e in selector.get("matchExpressions", ())
    )


def _address(pod: Object) -> str:
    return str(pod["status"]["podIP"])


def _has_network(pod: Object) -> bool:
    status = pod["status"]
    return bool(status.get("podIP")) and not pod["spec"].get("hostNetwork") and status["phase"] in ("Pending", "Running")


def _enforce(rules: str) -> None:
    iptables = ["iptables", "-w", "10"]
    subprocess.run(["iptables-restore", "--noflush", "-w", "10"], input=rules, text=True, check=True)
    if subprocess.run([*iptables, "-C", "FORWARD", "-j", TOP], stderr=subprocess.DEVNULL, check=False).returncode:
        subprocess.run([*iptables, "-I", "FORWARD", "-j", TOP], check=True)


def main(url: str, directory: str) -> None:
    """Enforce until ended."""
    context = ssl.create_default_context(cafile=f"{directory}/ca.crt")
    context.load_cert_chain(f"{directory}/admin.crt", f"{directory}/admin.key")

    def items(path: str) -> list[Object]:
        with urllib.request.urlopen(f"{url}/{path}?resourceVersion=0", context=context, timeout=5) as answer:
            found: list[Object] = json.load(answer)["items"]
        return found

    before = ""
    while True:
        try:
            pods = [p for p in items("api/v1/pods") if _has_network(p)]
            labels = {n["metadata"]["name"]: n["metadata"].get("labels", {}) for n in items("api/v1/namespaces")}
            rules = chains(items("apis/networking.k8s.io/v1/networkpolicies"), pods, labels)
            if rules != before:
                _enforce(rules)
                before = rules
        except (OSError, ValueError, KeyError, subprocess.CalledProcessError) as e:
            print(repr(e), flush=True)
        time.sleep(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
