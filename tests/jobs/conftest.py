"""What tests of several files share: a tokenizer with a generator, and a local Ray cluster."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import ray_machine
import trained


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A runs folder with a tokenizer and a generator of random weights."""
    return trained.both(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[str]:
    """The address of the cluster; it starts when a test needs it first."""
    pytest.importorskip("ray", reason="needs the extra ray: pip install 'titokctl[ray]'")
    with ray_machine.cluster() as address:
        yield address
