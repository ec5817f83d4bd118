"""The servers that the tests share, and their clients."""

import shutil

import pytest
import tritonclient.grpc as grpcclient
from arrays import DTYPES
from nereid import BINARY, ROOT, Nereid, identity_config, parameter, write_model
from protocols import PROTOCOLS, connect

# How long one execution of the model `slow` takes.
SLOW_MS = 400


def pytest_sessionstart(session):
    if not BINARY.exists():
        pytest.exit(f"{BINARY} is missing: run `make clients`, or set NEREID_BIN", returncode=2)


@pytest.fixture(scope="session")
def repository(tmp_path_factory):
    """Identity models of every type, one of two inputs, one that is slow, and two of the project's examples."""
    folder = tmp_path_factory.mktemp("models")
    for dtype in DTYPES:
        write_model(folder, f"batched_{dtype}", identity_config([dtype], extra="dynamic_batching { }"))
        write_model(folder, f"plain_{dtype}", identity_config([dtype], max_batch_size=0, dims="-1, 2"))
    write_model(folder, "pair", identity_config(["FP32", "INT32"], dims="4"))
    delay = parameter("identity.delay_us", SLOW_MS * 1000)
    write_model(folder, "slow", identity_config(["FP32"], max_batch_size=1, extra=f"dynamic_batching {{ }}\n{delay}"))
    versions = "version_policy { all { } }"
    write_model(folder, "versioned", identity_config(["FP32"], extra=versions), versions=(1, 3))
    copy_examples(folder, "add_sub", "repeat_int32")
    return folder


def copy_examples(folder, *names):
    """Puts examples of the project into a repository."""
    for name in names:
        shutil.copytree(ROOT / "model_repository" / name, folder / name)


@pytest.fixture(scope="session")
def server(repository):
    """A server that serves everything in `repository`; no test changes what it serves."""
    with Nereid(repository) as running:
        yield running


@pytest.fixture(scope="session")
def client(server):
    """Triton's synchronous gRPC client of `server`."""
    with grpcclient.InferenceServerClient(server.grpc) as connected:
        yield connected


@pytest.fixture(scope="session", params=PROTOCOLS)
def either(request, server):
    """Triton's synchronous client of `server`, once for each protocol; see protocols.py."""
    with connect(request.param, server) as connected:
        yield connected
