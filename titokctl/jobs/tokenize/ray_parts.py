"""Parts made by Ray: tasks decode units, actors that hold the tokenizer encode them, and the driver writes the parts.

Pixels go from the task to the actor through Ray's object store. Parts, which are small, come back to the driver, so
that no other machine needs to see the output. `tokenize_unit` makes them, so they have the same bytes as anywhere else.
"""

import contextlib
import functools
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from titokctl import __version__
from titokctl.config.preprocessing import PreprocessingConfig
from titokctl.context import Context
from titokctl.data.pipeline import DecodedUnit, Decoder
from titokctl.data.sources import Source, Unit
from titokctl.distributed.ray_cluster import ActorPool, Connection, Stages, check_machine
from titokctl.formats.token_header import CacheHeader
from titokctl.formats.token_parts import TokenPart
from titokctl.jobs.tokenize.encode import TileEncoder, UnitSettings, made_with, tokenize_unit
from titokctl.jobs.tokenize.local_parts import SAVED
from titokctl.models.titok.tokenizer import TiTok

_WRITERS = 4
_RETRIES = 2


@dataclass(frozen=True)
class RayParts:
    """Makes parts on a Ray cluster.

    Args:
        source: the images; every machine must see its files.
        model: the tokenizer, on the CPU. Ray sends it to the actors.
        header: of the cache. A machine that would make other rows (`made_with`) is refused.
        connection: the cluster.
    """

    source: Source
    model: TiTok
    header: CacheHeader
    connection: Connection

    def make(
        self,
        units: Iterator[Unit],
        write: Callable[[TokenPart], None],
        advance: Callable[[int], None],
        context: Context,
    ) -> None:
        def check() -> None:
            context.stop.check(SAVED)

        pool = ActorPool[Unit](self.connection, self._stages(), check, context.progress.warn)
        pending: deque[Future[None]] = deque()
        with ThreadPoolExecutor(_WRITERS, thread_name_prefix="write") as writers:
            for _, part in pool.results(units):
                pending.append(writers.submit(write, part))
                while len(pending) > 2 * _WRITERS:
                    pending.popleft().result()
                advance(part.count)
            for one in pending:
                one.result()

    def _stages(self) -> Stages[Unit]:
        import ray

        source, folder = ray.put(self.source), os.getcwd()
        settings = UnitSettings.of(self.header, self.connection.device)
        squares = settings.squares(self.model.config.image_size)
        network = ray.put((self.model, settings, self.header.made_with, __version__))
        actor = ray.remote(TokenizeActor).options(**self.connection.actor_options)
        decode = ray.remote(decode_unit).options(num_cpus=1, num_returns=2, max_retries=_RETRIES)

        def begin(unit: Unit, is_careful: bool) -> tuple[Any, Any]:
            done, decoded = decode.remote([source], unit, squares, folder, is_careful)
            return done, decoded

        # References in lists reach a task as they are: a worker keeps the source instead of reading it for every unit.
        return Stages(
            start=lambda: actor.remote([source], [network], folder),
            begin=begin,
            work=lambda one, unit, decoded: one.part.remote(unit, decoded),
            name=lambda unit: unit.name,
        )


class TokenizeActor:
    """A worker that holds the tokenizer, on a GPU of its own if the cluster has some."""

    def __init__(self, source: list[Any], network: list[Any], folder: str) -> None:
        self._given = source, network, folder

    def prepare(self) -> None:
        """Load the tokenizer. Raises UserError where this machine would make other rows than the driver's."""
        import ray

        source, network, folder = self._given
        model, settings, expected, version = ray.get(network[0])
        here = made_with(expected["tile"], settings.precision, settings.device) | {"titokctl": __version__}
        check_machine(expected | {"titokctl": version}, here, "rows")
        self._source = _source_of(source[0], folder)
        self._encoder = TileEncoder(model, settings)

    def part(self, unit: Unit, decoded: DecodedUnit) -> TokenPart:
        """Return the part of one unit."""
        return tokenize_unit(
            self._source, unit, self._encoder, self._encoder.settings, decoded=_moved(decoded, (0, 2, 3, 1))
        )


def decode_unit(
    source: list[Any], unit: Unit, squares: list[PreprocessingConfig], folder: str, is_careful: bool
) -> tuple[None, DecodedUnit]:
    """Decode one unit; a task of Ray. The first result only says that it ended.

    Args:
        source: the reference of the source, in a list.
        folder: the driver's working folder, for relative paths.
        is_careful: decode every file in a process that may die, and reject a file that kills it.
    """
    with Decoder(_source_of(source[0], folder), squares, is_careful=is_careful) as decoder:
        # (n, S, S, 3) is a view of planes; what is contiguous travels without a copy.
        return None, _moved(decoder.unit(unit), (0, 3, 1, 2))


@functools.lru_cache(maxsize=1)
def _source_of(reference: Any, folder: str) -> Source:
    """Return the source, which a worker reads from Ray's object store once."""
    import ray

    with contextlib.suppress(OSError):
        os.chdir(folder)
    found: Source = ray.get(reference)
    return found


def _moved(decoded: DecodedUnit, axes: tuple[int, ...]) -> DecodedUnit:
    """Return the same unit with the axes of its pixels in another order; nothing is copied."""
    first, *further = (pixels.transpose(axes) for pixels in (decoded.pixels, *decoded.further))
    return replace(decoded, pixels=first, further=tuple(further))
