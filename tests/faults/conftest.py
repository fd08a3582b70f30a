"""The server with the shim, and the inputs of the commands, which both campaigns on system calls share."""

from collections.abc import Iterator

import commands
import pytest
from campaign import Server, inputs, with_shim


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    found = with_shim(tmp_path_factory.mktemp("shim"))
    yield found
    found.close()


@pytest.fixture(scope="module")
def place(server: Server) -> commands.Place:
    return inputs(server)
