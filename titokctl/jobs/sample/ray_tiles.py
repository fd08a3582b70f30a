"""Tiles drawn by Ray: actors that hold generator and decoder draw them, and the driver writes their images.

Images travel through Ray's object store to the driver, so that no other machine needs to see the output. `TileDrawer`
draws them, so they have the same bytes as anywhere else.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from titokctl import __version__
from titokctl.context import Context
from titokctl.distributed.ray_cluster import ActorPool, Connection, Stages, check_machine
from titokctl.distributed.stop import StopRequest
from titokctl.errors import Stopped, UserError
from titokctl.evaluation.extractors import FeatureNetwork
from titokctl.formats.image_output import Rows
from titokctl.jobs.sample.inputs import SampleTask, build_networks, calculation
from titokctl.jobs.sample.tiles import DrawnPiece, TileDrawer
from titokctl.models.generator import Known
from titokctl.sampling.plan import Tile


@dataclass(frozen=True)
class RayTiles:
    """Draws tiles on a Ray cluster.

    Args:
        task: the set. A machine that would draw other images is refused.
        network: the feature network of `task.features`; every machine must be able to load it.
        connection: the cluster.
        warn: reports actors that died.
    """

    task: SampleTask
    network: FeatureNetwork | None
    connection: Connection
    warn: Callable[[str], None]

    def drawn(self, tiles: Iterator[Tile], stop: StopRequest) -> Iterator[tuple[Tile, Iterable[DrawnPiece]]]:
        pool = ActorPool[Tile](self.connection, self._stages(), stop.check, self.warn)
        with contextlib.suppress(Stopped):
            for tile, found in pool.results(tiles):
                yield tile, [DrawnPiece(first, len(rows.ids), partial(_same, rows)) for first, rows in found]

    def _stages(self) -> Stages[Tile]:
        import ray

        # Known ids go with each tile: the token cache of --keep need not be visible to other machines.
        given = ray.put((replace(self.task, kept=None), self.network, __version__))
        actor = ray.remote(SampleActor).options(**self.connection.actor_options)
        return Stages(
            start=lambda: actor.remote([given]),
            begin=None,
            work=lambda one, tile, _: one.tile.remote(tile, self.task.known(tile.image_indices())),
            name=lambda tile: f"images {tile.first} to {tile.first + tile.count - 1}",
        )


class SampleActor:
    """A worker that holds generator and decoder, on a GPU of its own if the cluster has some."""

    def __init__(self, given: list[Any]) -> None:
        self._given = given

    def prepare(self) -> None:
        """Load the networks. Raises UserError where this machine would draw other images than the driver's."""
        import ray

        task, network, version = ray.get(self._given[0])
        here = calculation(task.device, task.precision)
        check_machine(
            task.calculation.decisive | {"titokctl": version}, here.decisive | {"titokctl": __version__}, "images"
        )
        extractor = None if network is None else network.open(Context(device=task.device))
        if extractor is not None and task.features != {"name": extractor.name, **extractor.description}:
            raise UserError(f"this machine has another network {extractor.name} than the driver's", "install the same")
        networks = build_networks(task.generator, task.tokenizer, task.device, task.precision)
        self._drawer = TileDrawer(task, networks, extractor)

    def tile(self, tile: Tile, known: Known | None) -> list[tuple[int, Rows]]:
        """Return the rows of a tile in pieces, each with the index of its first image."""
        return [(piece.first, piece.rows()) for piece in self._drawer.pieces(tile, known)]


def _same(rows: Rows) -> Rows:
    return rows
