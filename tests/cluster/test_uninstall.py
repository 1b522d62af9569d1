"""The end of a release. It comes after all other tests of it, because what they need is gone then."""

import pytest

from tests.cluster.conftest import KEEP
from tests.cluster.kubectl import WAIT, Cluster

OURS = "app.kubernetes.io/instance=signalbox"


@pytest.mark.ci
@pytest.mark.skipif(KEEP, reason="SIGNALBOX_TEST_KEEP keeps the release")
def test_after_an_uninstall_nothing_runs_and_what_cannot_be_made_again_stays(serving: Cluster) -> None:
    serving.run("delete", "rk,cla,clp", "--all", "--timeout=120s")  # as docs/kubernetes.md says: accounts first
    serving.helm("uninstall", "signalbox", "--wait", f"--timeout={WAIT}")
    serving.run("wait", "--for=delete", "pod", "-l", f"{OURS},app.kubernetes.io/component!=test", f"--timeout={WAIT}")
    kinds = (
        "deployments,statefulsets,jobs,cronjobs,services,configmaps,serviceaccounts,networkpolicies,poddisruptionbudgets,"
        "horizontalpodautoscalers,roles,rolebindings,secrets,persistentvolumeclaims"
    )
    left = {name.partition("/")[2] for name in serving.run("get", kinds, "-l", OURS, "-o", "name").split()}
    rooms = {"signalbox-rooms", "signalbox-token-refresher"}
    stores = {"signalbox-redis", "signalbox-postgresql"}
    data = {"data-signalbox-redis-0", "data-signalbox-postgresql-0"}
    assert left - {"signalbox-rooms-tls", "signalbox-rooms-authority"} == rooms | stores | data
    clusterwide = serving.run("get", "clusterroles,clusterrolebindings", "-l", OURS, "-o", "name").split()
    assert clusterwide == []
    definitions = serving.run("get", "customresourcedefinitions", "-o", "name")
    assert all(f"{kind}.signalbox.dev" in definitions for kind in ("claudeaccounts", "accountpools", "relaykeys"))
