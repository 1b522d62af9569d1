"""The Helm chart as rendered: names, settings, what it refuses, how tightly pods, roles and networks are closed."""

import itertools
import json
import re
from pathlib import Path

import pytest
import yaml

from tests.deploy.chart import (
    CHART,
    LOADER,
    ROOMS,
    ROOT,
    Object,
    conformity,
    one,
    pods,
    refusal,
    run,
    template,
    variables,
)

pytestmark = pytest.mark.slow

MONITORING = ("monitoring.coreos.com/v1",)
EVERYTHING = (
    "postgresql.bundled.enabled=true", "usage.replicas=2", "gateway.autoscaling.enabled=true", "rooms.tls.mode=Generated",
    "ingress.enabled=true", 'ingress.hosts=["relay.example.com"]', "ingress.tlsSecret=relay", "httpRoute.enabled=true",
    'httpRoute.parentRefs=[{"name": "public"}]', "monitoring.serviceMonitor.enabled=true", "monitoring.rules.enabled=true",
    "monitoring.dashboards.enabled=true",
    'tokenRefresher.identityTokens=[{"name": "anthropic", "audience": "https://api.anthropic.com"}]',
)
# Values that a platform team combines; each set is linted, rendered and, where there is an API server, tried there.
MATRIX = {
    "default": (),
    "everything": EVERYTHING,
    "own stores": (
        "redis.bundled.enabled=false", "redis.existingSecret=my-redis", "redis.tlsSecret=my-ca",
        "postgresql.existingSecret=my-pg", "postgresql.tlsSecret=my-ca", "usage.replicas=3", "networkPolicy.enabled=false",
    ),
    "everywhere": ('watchNamespaces=["*"]', "crds.install=false", 'allowedUpstreamHosts=["*.example.com"]'),
    "some namespaces": ('watchNamespaces=["a", "b"]', "crds.keep=false", "podDisruptionBudget.enabled=false"),
    "keda": ("gateway.autoscaling.enabled=true", "gateway.autoscaling.kind=KEDA", "gateway.autoscaling.targetInFlight=100"),
    "own secrets": (
        "rooms.existingSecret=mine", "tokenRefresher.existingSecret=mine", "rooms.tls.mode=Existing",
        "rooms.tls.existingSecret=certs", 'image.pullSecrets=["registry"]', "redis.bundled.persistence.enabled=false",
        "gateway.service.type=LoadBalancer", 'networkPolicy.telemetryFrom=[]',
    ),
    "cert-manager": ("rooms.tls.mode=CertManager", "rooms.tls.issuerRef.name=ca", "gateway.replicas=0"),
}


@pytest.mark.parametrize("case", MATRIX)
def test_every_combination_lints_and_renders(case: str, tmp_path: Path) -> None:
    sets = [p for v in MATRIX[case] for p in ("--set-json" if "=[" in v else "--set", v)]
    linted = run("lint", "--strict", str(CHART), *sets)
    assert linted.returncode == 0, linted.stdout + linted.stderr
    objects = template(*MATRIX[case], apis=MONITORING)
    identities = [(o["kind"], o["metadata"].get("namespace"), o["metadata"]["name"]) for o in objects]
    assert len(identities) == len(set(identities))
    for kind, _, name in identities:
        assert name.startswith("signalbox") or kind == "CustomResourceDefinition", (kind, name)


@pytest.mark.parametrize("case", MATRIX)
def test_every_object_is_as_its_kinds_schema_says(case: str) -> None:
    said = conformity(template(*MATRIX[case], apis=MONITORING))
    assert said.returncode == 0, said.stdout + said.stderr


def test_a_field_that_no_schema_knows_is_found_in_every_kind() -> None:
    objects = {o["kind"]: o for case in MATRIX.values() for o in template(*case, apis=MONITORING)}
    assert {"HTTPRoute", "ScaledObject", "Certificate", "PodMonitor", "PrometheusRule"} <= set(objects)
    strict = {kind: o for kind, o in objects.items() if isinstance(o.get("spec"), dict) and kind != "CustomResourceDefinition"}
    assert len(strict) > 12
    wrong = [{**o, "spec": with_a_typo(o["spec"])} for o in strict.values()]
    said = json.loads(conformity(wrong).stdout)["resources"]
    assert {r["kind"] for r in said if r["status"] == "statusInvalid" and "unheardOf" in r["msg"]} == set(strict)


def with_a_typo(node: Object) -> Object:
    """The deepest first object in it, and all above, with a field that nobody knows."""
    inner = {k: with_a_typo(v) for k, v in node.items() if isinstance(v, dict) and k not in ("matchLabels", "selector")}
    return {**node, **dict(list(inner.items())[:1]), "unheardOf": True}


def test_the_names_that_others_rely_on() -> None:
    objects = template("postgresql.bundled.enabled=true")
    for room in ROOMS:
        one(objects, "Deployment", f"signalbox-{room}")
    for store in ("redis", "postgresql"):
        one(objects, "StatefulSet", f"signalbox-{store}")
    gateway = one(objects, "Service", "signalbox-gateway")["spec"]
    assert [(p["name"], p["port"]) for p in gateway["ports"]] == [("http", 8080)]
    assert one(objects, "Service", "signalbox-scheduler")["spec"]["clusterIP"] == "None"
    scheduler = one(objects, "Service", "signalbox-scheduler")["spec"]
    assert [(p["name"], p["port"]) for p in scheduler["ports"]] == [("grpc", 7001), ("session", 7011)]
    assert variables(pods(objects)["signalbox-gateway"])["SIGNALBOX_SCHEDULER_SESSION_ADDRESS"] == "signalbox-scheduler:7011"
    one(objects, "Service", "signalbox-token-refresher")
    one(objects, "Service", "signalbox-usage")
    for service in (o for o in objects if o["kind"] == "Service"):
        assert all(p["port"] != 9090 for p in service["spec"]["ports"]), "telemetry is on no Service"


def test_two_releases_in_one_namespace_share_no_name_and_no_pod() -> None:
    first, second = template(), template("crds.install=false", release="other")
    names = [{(o["kind"], o["metadata"]["name"]) for o in objects} for objects in (first, second)]
    assert not names[0] & names[1]
    for deployment in (o for o in second if o["kind"] == "Deployment"):
        assert deployment["spec"]["selector"]["matchLabels"]["app.kubernetes.io/instance"] == "other"
    assert variables(pods(second)["other-gateway"])["SIGNALBOX_SCHEDULER_ADDRESS"] == "other-scheduler:7001"


def test_every_pod_is_restricted_and_only_two_rooms_have_an_api_token() -> None:
    found = pods(template(*EVERYTHING))
    assert len(found) == 10
    for name, pod in found.items():
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in (*pod.get("initContainers", ()), *pod["containers"]):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
            }, name
            assert "limits" in container["resources"], name
        assert not [v for v in pod.get("volumes", ()) if "hostPath" in v]
        token = name in ("signalbox-operator", "signalbox-token-refresher") or "-certificates" in name
        assert pod["automountServiceAccountToken"] is token, name


def test_a_pod_with_a_log_stands_behind_every_test_hook() -> None:
    """`helm test --logs` asks for the log of a pod of each hook's name, and names no container."""
    ran = run("template", "signalbox", str(CHART), "--namespace", "relay")
    whole = [o for o in yaml.load_all(ran.stdout, Loader=LOADER) if o]
    hooks = [o for o in whole if o["metadata"].get("annotations", {}).get("helm.sh/hook") == "test"]
    assert {o["metadata"]["name"] for o in hooks} == {"signalbox-test"}
    [pod] = [o for o in hooks if o["kind"] == "Pod"]
    assert len(pod["spec"]["containers"]) == 1
    assert pod["metadata"]["annotations"]["helm.sh/hook-delete-policy"] == "before-hook-creation", "its log is still to be read"
    [rest] = [o for o in hooks if o["kind"] != "Pod"]
    assert all(o["metadata"]["annotations"]["helm.sh/hook"] == "test" for o in rest["items"]), "for who takes lists apart"


def test_any_room_answers_the_command_line() -> None:
    found = pods(template())
    for room in ROOMS:
        env = variables(found[f"signalbox-{room}"])
        assert env["SIGNALBOX_ADDR"] == "env:"
        assert {"SIGNALBOX_SCHEDULER_ADDRESS", "SIGNALBOX_TOKEN_REFRESHER_ADDRESS", "SIGNALBOX_USAGE_ADDRESS",
                "SIGNALBOX_SHARED_SECRET"} <= set(env)


def test_default_requests_fit_a_small_node() -> None:
    objects = template("postgresql.bundled.enabled=true")
    cpu = memory = 0
    for o in objects:
        if o["kind"] in ("Deployment", "StatefulSet") and "-test" not in o["metadata"]["name"]:
            [container] = o["spec"]["template"]["spec"]["containers"]
            asked = container["resources"]["requests"]
            assert asked["cpu"].endswith("m")
            assert asked["memory"].endswith("Mi")
            cpu += int(asked["cpu"][:-1]) * o["spec"]["replicas"]
            memory += int(asked["memory"][:-2]) * o["spec"]["replicas"]
    assert cpu <= 2000
    assert memory <= 4096


def test_the_gateways_grace_leads_the_servers_own() -> None:
    pod = pods(template("gateway.terminationGracePeriodSeconds=120"))["signalbox-gateway"]
    [container] = pod["containers"]
    before = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["terminationGracePeriodSeconds"] == 120
    assert int(variables(pod)["SIGNALBOX_STOP_GRACE_SECONDS"]) + before < 120


def test_replicas_are_left_to_the_autoscaler_and_there_is_only_one() -> None:
    for kind, made, other in (("HPA", "HorizontalPodAutoscaler", "ScaledObject"), ("KEDA", "ScaledObject", "HorizontalPodAutoscaler")):
        objects = template("gateway.autoscaling.enabled=true", f"gateway.autoscaling.kind={kind}", "gateway.autoscaling.targetInFlight=50")
        assert "replicas" not in one(objects, "Deployment", "signalbox-gateway")["spec"]
        one(objects, made, "signalbox-gateway")
        assert not [o for o in objects if o["kind"] == other]


def test_a_budget_is_made_only_where_a_room_has_several_pods() -> None:
    budgets = {o["metadata"]["name"] for o in template("scheduler.replicas=1") if o["kind"] == "PodDisruptionBudget"}
    assert "signalbox-gateway" in budgets
    assert not budgets & {"signalbox-scheduler", "signalbox-usage", "signalbox-operator"}


SECRETS = {"verbs": ["get", "list", "watch"], "resources": ["secrets"], "apiGroups": [""]}


def test_roles_in_watched_namespaces_only() -> None:
    objects = template('watchNamespaces=["a", "b"]')
    assert not [o for o in objects if o["kind"].startswith("ClusterRole")]
    roles = {(o["metadata"]["namespace"], o["metadata"]["name"]): o["rules"] for o in objects if o["kind"] == "Role"}
    assert set(roles) == {
        ("a", "signalbox-operator"), ("b", "signalbox-operator"), ("relay", "signalbox-operator-lease"),
        ("relay", "signalbox-token-refresher"),
    }
    assert SECRETS in roles["a", "signalbox-operator"]


def test_grants_lie_in_secrets_or_on_a_volume() -> None:
    shared, alone = template("tokenRefresher.replicas=2"), template("tokenRefresher.store.kind=Volume", "tokenRefresher.replicas=1")
    room = variables(pods(shared)["signalbox-token-refresher"])
    assert (room["SIGNALBOX_TOKEN_REFRESHER_STORE"], room["SIGNALBOX_TOKEN_REFRESHER_STORE_OWNER"]) == ("secrets", "signalbox")
    claims = [{o["metadata"]["name"] for o in objects if o["kind"] == "PersistentVolumeClaim"} for objects in (shared, alone)]
    assert "signalbox-token-refresher" not in claims[0]
    assert "signalbox-token-refresher" in claims[1]
    assert pods(alone)["signalbox-token-refresher"]["automountServiceAccountToken"] is False
    assert "signalbox-token-refresher" not in {o["metadata"]["name"] for o in alone if o["kind"] == "Role"}
    assert "store.kind=Secrets" in refusal("tokenRefresher.store.kind=Volume", "tokenRefresher.replicas=2")


def test_the_operator_reads_secrets_and_writes_none() -> None:
    for values in ((), ('watchNamespaces=["*"]',)):
        for role in (o for o in template(*values) if o["kind"] in ("Role", "ClusterRole") and "operator" in o["metadata"]["name"]):
            for rule in role["rules"]:
                assert "*" not in rule["verbs"] + rule["resources"] + rule["apiGroups"]
                if "secrets" in rule["resources"]:
                    assert rule == SECRETS
                if "/status" in "".join(rule["resources"]):
                    assert rule["verbs"] == ["patch"]
    assert [o["metadata"]["name"] for o in template('watchNamespaces=["*"]') if o["kind"] == "ClusterRole"] == ["signalbox-relay-operator"]


def test_networks_let_in_only_who_belongs_there() -> None:
    objects = template("postgresql.bundled.enabled=true")
    policies = {o["metadata"]["name"].removeprefix("signalbox-"): o["spec"] for o in objects if o["kind"] == "NetworkPolicy"}
    assert set(policies) == {*ROOMS, "redis", "postgresql"}

    def let_in(room: str) -> set[str]:
        return {
            component
            for rule in policies[room]["ingress"]
            if any(p["port"] != 9090 for p in rule["ports"])
            for peer in rule.get("from", [])
            for match in peer["podSelector"]["matchExpressions"]
            for component in match["values"]
        }

    assert let_in("redis") == {"scheduler"}
    assert let_in("postgresql") == {"usage"}
    assert let_in("scheduler") == set(ROOMS)
    [sessions] = [r for r in policies["scheduler"]["ingress"] if [p["port"] for p in r["ports"]] == [7011]]
    assert [m["values"] for p in sessions["from"] for m in p["podSelector"]["matchExpressions"]] == [["gateway"]]
    assert policies["gateway"]["egress"] == policies["token-refresher"]["egress"] == [{}]
    assert policies["redis"]["egress"] == []
    assert not [r for r in policies["scheduler"]["egress"] if r == {}]
    collector = {"namespaceSelector": {"matchLabels": {"name": "observability"}}}
    found = template(f"networkPolicy.tracesTo={json.dumps([collector])}")
    [told] = [o["spec"]["egress"] for o in found if o["kind"] == "NetworkPolicy" and o["metadata"]["name"] == "signalbox-scheduler"]
    assert {"to": [collector]} in told
    assert {"to": [collector]} not in policies["scheduler"]["egress"]


def test_generated_secrets_outlive_the_release_and_never_change_a_pod() -> None:
    first, second = template(*EVERYTHING), template(*EVERYTHING)
    for secret in (o for o in first if o["kind"] == "Secret" and "-test" not in o["metadata"]["name"]):
        assert secret["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
        assert secret["data"] != one(second, "Secret", secret["metadata"]["name"])["data"], "made anew where none is known"
    assert pods(first) == pods(second)


def test_certificates_are_made_in_the_cluster_and_nothing_of_them_is_rendered() -> None:
    first, second = ([o for o in template(*EVERYTHING) if o["kind"] != "Secret"] for _ in range(2))
    assert first == second
    made = [o for o in template(*EVERYTHING) if "-certificates" in o["metadata"]["name"]]
    hooks = [o for o in made if o["metadata"]["name"] == "signalbox-certificates-hook"]
    assert {o["kind"] for o in hooks} == {"ServiceAccount", "Role", "RoleBinding", "Job"}
    for hook in hooks:
        assert hook["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
    for role in (o for o in made if o["kind"] == "Role"):
        assert role["rules"] == [
            {"apiGroups": [""], "resources": ["secrets"], "verbs": ["create"]},
            {"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["signalbox-rooms-tls", "signalbox-rooms-authority"],
             "verbs": ["get", "update"]},
        ]
    mounted = [v["secret"]["secretName"] for pod in pods(template(*EVERYTHING)).values() for v in pod.get("volumes", ()) if "secret" in v]
    assert "signalbox-rooms-tls" in mounted
    assert "signalbox-rooms-authority" not in mounted


def test_without_prometheus_definitions_nothing_of_it_is_made() -> None:
    assert not [o for o in template(*EVERYTHING) if o["apiVersion"].startswith("monitoring.coreos.com")]
    kinds = [o["kind"] for o in template(*EVERYTHING, apis=MONITORING)]
    assert kinds.count("PodMonitor") == kinds.count("PrometheusRule") == 1


def test_rules_carry_the_runbooks_address() -> None:
    objects = template("monitoring.rules.enabled=true", "monitoring.rules.runbookURL=https://runbooks.example/#", apis=MONITORING)
    [group] = one(objects, "PrometheusRule", "signalbox")["spec"]["groups"]
    for rule in group["rules"]:
        assert rule["annotations"]["runbook_url"] == f"https://runbooks.example/#{rule['alert'].lower()}"


@pytest.mark.parametrize(("values", "words"), [
    (("usage.replicas=2",), "needs PostgreSQL"),
    (("gatewy.replicas=2",), "gatewy"),
    (("gateway.replica=2",), "replica"),
    (("gateway.replicas=two",), "replicas"),
    (("log.level=loud",), "level"),
    (("redis.bundled.enabled=false",), "there is no Redis"),
    (("redis.existingSecret=mine",), "redis.bundled.enabled=false"),
    (("postgresql.bundled.enabled=true", "postgresql.existingSecret=mine"), "postgresql.bundled.enabled=false"),
    (('watchNamespaces=["*", "a"]',), "goes alone"),
    (("rooms.tls.mode=Existing",), "rooms.tls.existingSecret"),
    (("rooms.tls.mode=CertManager",), "issuerRef"),
    (("gateway.autoscaling.enabled=true", "gateway.autoscaling.minReplicas=30"), "minReplicas"),
    (("gateway.autoscaling.enabled=true", "gateway.autoscaling.kind=KEDA"), "targetInFlight"),
    (("gateway.terminationGracePeriodSeconds=40", "gateway.preStopSeconds=30"), "25 s more"),
    (("ingress.enabled=true",), "ingress.hosts"),
    (("httpRoute.enabled=true",), "parentRefs"),
])
def test_what_cannot_work_is_refused_with_what_to_do(values: tuple[str, ...], words: str) -> None:
    assert words in refusal(*values)


def test_a_name_too_long_for_its_objects_is_refused() -> None:
    assert "40 characters" in refusal(release="s" * 41)


def test_every_value_is_described_and_used() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    templates = "".join(p.read_text() for p in CHART.glob("templates/**/*") if p.is_file())

    def leaves(node: dict, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
        assert node.get("description") or not path
        inner = node.get("properties", {})
        if inner and node.get("additionalProperties") is False:
            return list(itertools.chain.from_iterable(leaves(child, (*path, name)) for name, child in inner.items()))
        return [path]

    for path in leaves(schema):
        assert path[-1] == "global" or re.search(rf"\.{path[-1]}\b", templates), f"{'.'.join(path)} is used nowhere"


def test_the_default_image_has_the_charts_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    [container] = pods(template())["signalbox-gateway"]["containers"]
    assert container["image"] == f"localhost/signalbox:{chart['appVersion']}"
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None
    assert version[1] == chart["appVersion"]
