"""The servers that the operator's tests share."""

import pytest
from nereid import BINARY, Nereid, identity_config, write_model


def pytest_sessionstart(session):
    if not BINARY.exists():
        pytest.exit(f"{BINARY} is missing: run `make operator`, or set NEREID_BIN", returncode=2)


@pytest.fixture(scope="session")
def repository(tmp_path_factory):
    """One model that batches, one of two versions, and one that cannot be loaded."""
    folder = tmp_path_factory.mktemp("models")
    write_model(folder, "echo", identity_config(["FP32"], dims="4", extra="dynamic_batching { }"))
    write_model(folder, "pair", identity_config(["FP32"], dims="4", extra="version_policy { all { } }"), versions=(1, 3))
    write_model(folder, "broken", identity_config(["FP32"], dims="4").replace('"identity"', '"pytorch"'))
    return folder


@pytest.fixture(scope="module")
def server(repository):
    """A server whose models may be loaded and unloaded by request."""
    with Nereid(repository, "--model-control-mode=explicit", "--load-model=*", "--metrics-interval-ms=100") as running:
        yield running

