"""The object store that the tests share."""

import pytest
from nereid import BINARY
from store import PYTHON, Store


def pytest_sessionstart(session):
    for needed in (BINARY, PYTHON):
        if not needed.exists():
            pytest.exit(f"{needed} is missing: run `make remote`", returncode=2)


@pytest.fixture(scope="session")
def store():
    """A store that lets anybody in; each test has a bucket of its own."""
    with Store() as running:
        yield running


@pytest.fixture
def bucket(store):
    """An empty bucket of `store`."""
    return store.bucket()
