"""Features of images: fixed batches through a feature network, in order, on all cores; and what is kept of them.

A `FeatureSet` is what one pass leaves: Gaussians, and the features that some metrics need.

Letters: n images, B batch, H and W height and width, D feature width, S splits, C classes.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch

from titokctl.data.image_decoder import on_host
from titokctl.distributed.group import Group
from titokctl.distributed.reduce import rows_on_main, sum_arrays
from titokctl.evaluation.extractors import Extractor
from titokctl.evaluation.frechet import Gaussian, GaussianSums
from titokctl.evaluation.inception_score import ScoreSums, starts_of
from titokctl.models.device import send
from titokctl.models.precision import precision

Features = dict[str, np.ndarray]
_BATCHES_AHEAD = 2  # that a GPU is given before the features of an earlier one are used


def extract(extractor: Extractor, images: Iterable[np.ndarray]) -> Iterator[Features]:
    """Yield features batch by batch, in the order of the images; only a few batches are held at once.

    A feature depends on its image alone: every batch has the same size (the last one is padded), and on a CPU every
    batch is one thread's work, so that neither the number of images nor that of cores changes a bit.

    Args:
        extractor: from `open_extractor`.
        images: arrays (n, H, W, 3) uint8 of any n, all of one H and W.

    Yields:
        {output name: (B, D) float32}.

    Raises:
        ValueError: when the images are not uint8 with three channels, or differ in size.
    """
    batches = fixed_batches(images, extractor.batch_size)
    if extractor.device != "cpu":
        yield from _on_gpu(extractor, batches)
        return
    workers = torch.get_num_threads()
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
    try:
        pending: deque[Future[Features]] = deque()
        for batch in batches:
            pending.append(pool.submit(_run_on_cpu, extractor, batch))
            while len(pending) > 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def extract_on_device(extractor: Extractor, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the features of images that are on the extractor's GPU, as tensors there; the host does not wait.

    The numbers are those of `extract`.

    Args:
        images: (n, H, W, 3) uint8.
    """
    parts = images.split(extractor.batch_size)
    with precision(extractor.arithmetic, extractor.device):
        found = [_run(extractor, part) for part in parts]
    return {name: torch.cat([part[name] for part in found]) for name in extractor.widths}


def extract_all(extractor: Extractor, images: Iterable[np.ndarray]) -> Features:
    """Return the features of all images, {output name: (n, D) float32}; for sets that fit into memory."""
    parts = list(extract(extractor, images))
    return {
        name: np.concatenate([part[name] for part in parts]) if parts else np.empty((0, width), np.float32)
        for name, width in extractor.widths.items()
    }


def _run_on_cpu(extractor: Extractor, batch: np.ndarray) -> Features:
    return {name: values.numpy() for name, values in _run(extractor, torch.from_numpy(batch)).items()}


def _on_gpu(extractor: Extractor, batches: Iterable[np.ndarray]) -> Iterator[Features]:
    """Yield features from a GPU, which has work in hand while the caller uses them and the next batch is read."""
    pending: deque[Callable[[], Features]] = deque()
    for batch in batches:
        with precision(extractor.arithmetic, extractor.device):
            pending.append(on_host(_run(extractor, send(torch.from_numpy(batch), extractor.device))))
        if len(pending) > _BATCHES_AHEAD:
            yield pending.popleft()()
    while pending:
        yield pending.popleft()()


def _run(extractor: Extractor, batch: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the features of a batch (n, H, W, 3) uint8 on the device; the network always gets `batch_size` images."""
    n = len(batch)
    if n < extractor.batch_size:
        batch = torch.cat([batch, batch.new_zeros((extractor.batch_size - n, *batch.shape[1:]))])
    with torch.inference_mode():
        found = extractor.network(batch)
    return {name: values[:n] for name, values in found.items()}


def fixed_batches(images: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """Yield the images (n, H, W, 3) uint8 again, `size` at a time; only the last batch may be shorter.

    Raises ValueError when they are not uint8 with three channels, or differ in size.
    """
    held: list[np.ndarray] = []
    count, shape = 0, None
    for array in images:
        if array.dtype != np.uint8 or array.ndim != 4 or array.shape[3] != 3:
            raise ValueError(f"expected images (n, H, W, 3) uint8, not {array.shape} {array.dtype}")
        shape = shape or array.shape[1:]
        if array.shape[1:] != shape:
            raise ValueError(f"images of different sizes: {shape[:2]} and {array.shape[1:3]}")
        held.append(array)
        count += len(array)
        if count < size:
            continue
        joined = np.concatenate(held)
        whole = count - count % size
        for first in range(0, whole, size):
            yield joined[first : first + size]
        held, count = [joined[whole:]], count - whole
    if count:
        yield np.concatenate(held)


@dataclass(frozen=True)
class FeatureSet:
    """A set of images as metrics see it; None for what the extractor or the file doesn't provide.

    `features` (m, D) are those of all images or of a part spread evenly over the set; `score_sums` (S, 2 + C) is the
    table of `ScoreSums` for all of them.
    """

    count: int
    pool: Gaussian
    spatial: Gaussian | None = None
    features: np.ndarray | None = None
    score_sums: np.ndarray | None = None

    @property
    def has_all_features(self) -> bool:
        """True when `features` holds a row for every image."""
        return self.features is not None and len(self.features) == self.count


class FeatureCollector:
    """Collects features batch by batch, in the order of the set.

    Args:
        widths: width of every output of the extractor.
        expected: number of images in the set; the kept ones are spread over them.
        keep: at most so many rows of pooled features are kept.
        splits: of the Inception score; None for those of the ADM evaluator.
        device: where the features come from; those of a GPU are added in a thread, so that it gets its next batch.
    """

    def __init__(
        self, widths: dict[str, int], expected: int, keep: int, splits: int | None = None, device: str = "cpu"
    ) -> None:
        summed = [name for name in widths if name in ("pool", "spatial")]
        self._sums = {name: GaussianSums(widths[name], in_thread=device != "cpu") for name in summed}
        self._scores = ScoreSums(widths["logits"], starts_of(expected, splits)) if "logits" in widths else None
        self._expected, self._share = max(expected, 1), min(keep, max(expected, 1))
        # Pages that are never written cost no memory.
        self._features = np.empty((self._share, widths["pool"]), np.float32)
        self._kept = 0
        self.seen = 0

    def add(self, features: Features, places: np.ndarray | None = None) -> None:
        """Take in the next batch; `places` (n,) are its images' positions in the set, by default the next ones."""
        places = np.arange(self.seen, self.seen + len(features["pool"])) if places is None else places
        for name, sums in self._sums.items():
            sums.add(features[name])
        # Row i is kept when a new multiple of expected / keep was reached: evenly spread, and all when they are few.
        kept = (places + 1) * self._share // self._expected > places * self._share // self._expected
        rows = features["pool"][kept]
        self._features[self._kept : self._kept + len(rows)] = rows
        self._kept += len(rows)
        if self._scores is not None:
            self._scores.add(places, features["logits"])
        self.seen += len(places)

    @property
    def kept_rows(self) -> np.ndarray:
        """The rows of pooled features that are kept so far, (m, D) float32."""
        return self._features[: self._kept]

    def state(self) -> dict[str, np.ndarray]:
        """Return everything but the kept rows as arrays; a collector continued by `restore` gets the same bits."""
        found = {"seen": np.array(self.seen), "kept": np.array(self._kept)}
        for name, sums in self._sums.items():
            found |= {f"{name}_{field}": values for field, values in sums.state().items()}
        return found if self._scores is None else found | {"scores": self._scores.table}

    def restore(self, state: Mapping[str, np.ndarray], rows: np.ndarray) -> None:
        """Continue from a `state` with its kept rows. Raises ValueError or KeyError for one of other features."""
        if len(rows) > self._share or (len(rows) and rows.shape[1:] != self._features.shape[1:]):
            raise ValueError("the kept rows are of other features")
        if self._scores is not None:
            if state["scores"].shape != self._scores.table.shape:
                raise ValueError("the scores are of other splits")
            self._scores.table[:] = state["scores"]
        for name, sums in self._sums.items():
            sums.restore({field: state[f"{name}_{field}"] for field in ("count", "total", "products", "held")})
        self._features[: len(rows)] = rows
        self._kept, self.seen = len(rows), int(state["seen"])

    def result(self, group: Group | None = None) -> FeatureSet:
        """Return what was collected, by all processes of `group` together; the features are on rank 0 alone.

        Raises ValueError for fewer than two images.
        """
        rows: np.ndarray | None = self._features[: self._kept]
        if group is not None:
            self._add_up(group)
            rows = rows_on_main(self._features[: self._kept], group)
        gaussians = {name: sums.gaussian() for name, sums in self._sums.items()}
        found = FeatureSet(self.seen, gaussians["pool"], gaussians.get("spatial"), rows)
        return found if self._scores is None else replace(found, score_sums=self._scores.table)

    def _add_up(self, group: Group) -> None:
        counter = np.array([float(self.seen)])
        arrays = [counter] + ([] if self._scores is None else [self._scores.table])
        for sums in self._sums.values():
            arrays += sums.settled()
        sum_arrays(arrays, group)
        self.seen = int(counter[0])
        for sums in self._sums.values():
            sums.count = self.seen
