"""From images to features: fixed batches through a feature network, in order, on all cores.

Letters: n images, B batch, H and W height and width, D feature width.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch

from titokctl.evaluation.extractors import Extractor
from titokctl.models.precision import precision

Features = dict[str, np.ndarray]


def extract(extractor: Extractor, images: Iterable[np.ndarray]) -> Iterator[Features]:
    """Features batch by batch, in the order of the images; only a few batches are held at once.

    A feature depends on its image alone: every batch has the same size (the last one is padded), and on a CPU every
    batch is one thread's work, so that neither the number of images nor that of cores changes a bit.

    Args:
        extractor: from `open_extractor`.
        images: arrays (n, H, W, 3) uint8 of any n, all of one H and W.

    Returns:
        an iterator of {output name: (B, D) float32}.

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


def extract_all(extractor: Extractor, images: Iterable[np.ndarray]) -> Features:
    """Features of all images at once, {output name: (n, D) float32}; for sets that fit into memory."""
    parts = list(extract(extractor, images))
    return {
        name: np.concatenate([part[name] for part in parts]) if parts else np.empty((0, width), np.float32)
        for name, width in extractor.widths.items()
    }


def _run_on_cpu(extractor: Extractor, batch: np.ndarray) -> Features:
    return _to_host(_run(extractor, batch))


def _on_gpu(extractor: Extractor, batches: Iterable[np.ndarray]) -> Iterator[Features]:
    """The next batch is read and sent while the GPU computes this one."""
    before: dict[str, torch.Tensor] | None = None
    for batch in batches:
        with precision("float32", extractor.device):
            computing = _run(extractor, batch)
        if before is not None:
            yield _to_host(before)
        before = computing
    if before is not None:
        yield _to_host(before)


def _run(extractor: Extractor, batch: np.ndarray) -> dict[str, torch.Tensor]:
    n = len(batch)
    if n < extractor.batch_size:
        padding = np.zeros((extractor.batch_size - n, *batch.shape[1:]), np.uint8)
        batch = np.concatenate([batch, padding])
    with torch.inference_mode():
        found = extractor.network(torch.from_numpy(batch).to(extractor.device))
    return {name: values[:n] for name, values in found.items()}


def _to_host(found: dict[str, torch.Tensor]) -> Features:
    return {name: values.cpu().numpy() for name, values in found.items()}


def fixed_batches(images: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """The images (n, H, W, 3) uint8 again, `size` at a time; only the last batch may be shorter.

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
