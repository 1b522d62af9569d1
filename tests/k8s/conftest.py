"""One control plane for all of these tests, one release for most, a namespace for each; skipped where none can be had."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.control_plane import CannotRun, ControlPlane
from tests.support.kube import Api
from tests.support.rbac import OPERATOR, grant_operator
from tests.support.release import Release
from tests.support.sim import Simulator

_count = itertools.count(1)
# What an hour's numbers would teach is not worth a minute's waiting each time.
NUMBERS_EVERY_S = 6
HOSTS = "127.0.0.1,*.anthropic.com"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.k8s)
            item.add_marker(pytest.mark.slow)
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(300))


@pytest.fixture(scope="session")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """The control plane, with the custom resources installed and an identity for the operator."""
    try:
        running = ControlPlane(tmp_path_factory.mktemp("control-plane"))
    except CannotRun as e:
        pytest.skip(str(e))
    with running:
        admin = Api(running.kubeconfig)
        admin.install_crds()
        grant_operator(admin)
        yield running


@pytest.fixture(scope="session")
def api(plane: ControlPlane) -> Api:
    """The API server as its administrator."""
    return Api(plane.kubeconfig)


@pytest.fixture
def ns(api: Api, request: pytest.FixtureRequest) -> Iterator[str]:
    """A namespace of the test's own."""
    name = f"team-{next(_count)}"
    api.namespace(name)
    yield name
    if request.node.get_closest_marker("scale") is None:  # ten thousand objects go with the control plane
        for kind in ("RelayKey", "AccountPool", "ClaudeAccount"):
            api.delete_all(kind, name)


@pytest.fixture(scope="session")
def sim() -> Iterator[Simulator]:
    """A provider that takes any key."""
    with Simulator() as running:
        yield running


@pytest.fixture(scope="session")
def release(plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Release]:
    """A release that watches all namespaces, its operator with no more rights than the documentation asks for."""
    directory = tmp_path_factory.mktemp("release")
    kubeconfig = plane.identity(OPERATOR)
    with Release(
        directory, kubeconfig, SIGNALBOX_WATCH_NAMESPACES="*", SIGNALBOX_ALLOWED_UPSTREAM_HOSTS=HOSTS,
        SIGNALBOX_OPERATOR_DRAIN_LIMIT_S="8", SIGNALBOX_OPERATOR_NUMBERS_EVERY_S=str(NUMBERS_EVERY_S),
    ) as running:
        yield running


@pytest.fixture
def alone(release: Release) -> Iterator[Release]:
    """The release, to be broken; afterwards it is whole again."""
    yield release
    release.mend()
