"""A local Ray cluster, which the tests of a process share."""

from collections.abc import Iterator

import pytest
import ray_machine


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[str]:
    """The address of the cluster; it starts when a test needs it first."""
    pytest.importorskip("ray", reason="needs the extra ray: pip install 'titokctl[ray]'")
    with ray_machine.cluster() as address:
        yield address
