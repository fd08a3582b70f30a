"""What tests of several files share: a local server of shards."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from shard_server import Server


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server without files; what is kept of them goes to a folder of the test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    running = Server()
    yield running
    running.close()
