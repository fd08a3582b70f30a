"""The Fréchet distance between two sets of features, each taken as a Gaussian (FID: arXiv 1706.08500), and its error.

The standard error is over draws of the samples, by the delta method: the distance is linearised in mean and covariance
of the samples, the reference held fixed, so that every sample has an influence, and the standard error is their
deviation over sqrt(n). The derivative with respect to the covariance S1 is I - T, T being the linear map that carries
N(0, S1) to N(0, S2) at the least cost.

Letters: n images, D feature width.
"""

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch

_ROWS_AT_ONCE = 1024
# Of the smallest to the largest squared pivot.
_FAR_FROM_SINGULAR = 1e-9
# With fewer images than this for each feature, the inverse of their covariance is mostly noise.
IMAGES_PER_FEATURE = 2
_INFLUENCES_AT_ONCE = 4096


@dataclass(frozen=True)
class Gaussian:
    """Mean (D,) and covariance (D, D), float64, the latter divided by n - 1; `count` is n, 0 when not known.

    `root` (D, r) float64 is a factor A with A A^T equal to the covariance, or None; it replaces an eigenvalue problem
    of size D.
    """

    mean: np.ndarray
    covariance: np.ndarray
    count: int = 0
    root: np.ndarray | None = None


class GaussianSums:
    """Running float64 sums from which mean and covariance follow; parts of a set can be added up in any order.

    Args:
        width: D.
        in_thread: add in a thread, block after block, while the caller continues; the bits are the same.
    """

    def __init__(self, width: int, in_thread: bool = False) -> None:
        self.count = 0
        self.total = np.zeros(width)
        self.products = np.zeros((width, width))
        self._held: list[np.ndarray] = []
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sums") if in_thread else None
        self._adding: Future[None] | None = None

    def add(self, features: np.ndarray) -> None:
        """Take in features (n, D)."""
        if features.ndim != 2 or features.shape[1] != len(self.total):
            raise ValueError(f"expected features (n, {len(self.total)}), not {features.shape}")
        self._held.append(np.asarray(features))
        if sum(map(len, self._held)) >= _ROWS_AT_ONCE:
            self._add_held()

    def state(self) -> dict[str, np.ndarray]:
        """Return the sums and the features that are not in them yet; sums continued by `restore` get the same bits."""
        self._finish()
        held = np.concatenate(self._held) if self._held else np.empty((0, len(self.total)), np.float32)
        return {"count": np.array(self.count), "total": self.total, "products": self.products, "held": held}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Continue from a `state`. Raises ValueError, with nothing changed, for one of another width."""
        self._finish()
        width, held = len(self.total), state["held"]
        if (state["total"].shape, state["products"].shape, held.shape[1:]) != ((width,), (width, width), (width,)):
            raise ValueError(f"expected sums of {width} features")
        self.count, self._held = int(state["count"]), [held] if len(held) else []
        self.total[:], self.products[:] = state["total"], state["products"]

    def gaussian(self) -> Gaussian:
        """Mean and covariance of what was added. Raises ValueError for fewer than two images."""
        self.settled()
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 images, not {self.count}")
        mean = self.total / self.count
        covariance = (self.products - self.count * np.outer(mean, mean)) / (self.count - 1)
        # The variance of what is the same in all images is rounding alone, of either sign.
        np.fill_diagonal(covariance, covariance.diagonal().clip(min=0))
        return Gaussian(mean, covariance, self.count)

    def settled(self) -> list[np.ndarray]:
        """The sums themselves, `total` (D,) and `products` (D, D), with all that was added in them."""
        if self._held:
            self._add_held()
        self._finish()
        return [self.total, self.products]

    def _add_held(self) -> None:
        """Add what is held, after the block before it; in the thread, if there is one."""
        self._finish()
        held, self._held = self._held, []
        self.count += sum(map(len, held))
        if self._thread is None:
            self._add(held)
        else:
            self._adding = self._thread.submit(self._add, held)

    def _add(self, held: list[np.ndarray]) -> None:
        # Few large products instead of one per batch: the same sums at the speed of a matrix product.
        x = torch.from_numpy(np.concatenate(held)).double()
        self.total += x.sum(0).numpy()
        self.products += (x.T @ x).numpy()

    def _finish(self) -> None:
        """Wait for the thread. Raises what it raised."""
        adding, self._adding = self._adding, None
        if adding is not None:
            adding.result()


def gaussian_of(features: np.ndarray) -> Gaussian:
    """Return mean and covariance of features (n, D), and for n up to D a root, too.

    Raises ValueError for fewer than two rows.
    """
    sums = GaussianSums(features.shape[1])
    sums.add(features)
    found, (rows, width) = sums.gaussian(), features.shape
    return replace(found, root=(features - found.mean).T / (rows - 1) ** 0.5) if rows <= width else found


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """|mean difference|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)); 0 for equal Gaussians, also when they are rank-deficient.

    Raises ValueError when the widths differ or a number is not finite.
    """
    for g in (a, b):
        if g.mean.ndim != 1 or g.covariance.shape != (len(g.mean),) * 2:
            raise ValueError(f"a Gaussian of mean {g.mean.shape} and covariance {g.covariance.shape} fits nothing")
        if not (np.isfinite(g.mean).all() and np.isfinite(g.covariance).all()):
            raise ValueError("statistics with values that are not finite")
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"statistics of different widths: {len(a.mean)} and {len(b.mean)}")
    difference = a.mean - b.mean
    traces = np.trace(a.covariance) + np.trace(b.covariance)
    first, second = sorted((a, b), key=lambda g: math.inf if g.root is None else g.root.shape[1])
    return float(difference @ difference + traces - 2 * trace_of_root(first.covariance, second.covariance, first.root))


def trace_of_root(s1: np.ndarray, s2: np.ndarray, root: np.ndarray | None = None) -> float:
    """tr((S1 S2)^(1/2)) for covariances (D, D) float64, through symmetric eigenvalue problems only.

    With S1 = A A^T, the eigenvalues of S1 S2 are those of A^T S2 A.

    Args:
        s1: S1.
        s2: S2.
        root: A (D, r) float64; None computes it from `s1`, which is not read otherwise.
    """
    a = _root(torch.from_numpy(s1)) if root is None else torch.from_numpy(root)  # (D, rank)
    inner = a.T @ torch.from_numpy(s2) @ a  # (rank, rank)
    if not len(inner):
        return 0.0
    squares = torch.linalg.eigvalsh((inner + inner.T) / 2)
    noise = 8 * torch.finfo(torch.float64).eps * squares[-1].clamp(min=0)
    return float(squares[squares > noise].sqrt().sum())


def _root(s: torch.Tensor) -> torch.Tensor:
    """A (D, rank) with A A^T = S: Cholesky's where S is far from singular, which takes a tenth of the time.

    Otherwise directions in which S has no variance beyond rounding are left out, so that noise of size epsilon does
    not come back as its square root.
    """
    triangle, failed = torch.linalg.cholesky_ex(s)
    pivots = triangle.diagonal()
    if not failed and len(s) and float(pivots.min() / pivots.max()) ** 2 > _FAR_FROM_SINGULAR:
        return triangle
    values, vectors = torch.linalg.eigh(s)
    kept = values > values[-1].clamp(min=0) * len(values) * torch.finfo(torch.float64).eps
    return vectors[:, kept] * values[kept].sqrt()


@dataclass(frozen=True)
class PairedTest:
    """A two-sided test of the difference between two distances to one reference.

    `difference` is the first minus the second, `p` the p-value.
    """

    difference: float
    standard_error: float
    p: float
    is_paired: bool


def frechet_standard_error(features: np.ndarray, samples: Gaussian, reference: Gaussian) -> float | None:
    """Return the standard error of `frechet_distance(samples, reference)`; None for fewer than 2 D samples.

    Args:
        features: (n, D) of all samples.
        samples: their Gaussian.
        reference: the Gaussian to compare with, taken as exact.
    """
    if len(features) < IMAGES_PER_FEATURE * features.shape[1]:
        return None
    return _standard_error(influences(features, samples, reference))


def influences(features: np.ndarray, samples: Gaussian, reference: Gaussian) -> np.ndarray:
    """Return (n,) float64, n times the influence of each sample on the distance, up to a constant.

    Arguments as in `frechet_standard_error`.
    """
    mean, difference = torch.from_numpy(samples.mean), torch.from_numpy(samples.mean - reference.mean)
    gradient = torch.eye(features.shape[1], dtype=torch.float64) - _transport(samples.covariance, reference.covariance)
    found = []
    for rows in torch.from_numpy(np.ascontiguousarray(features)).split(_INFLUENCES_AT_ONCE):
        x = rows.double() - mean  # (rows, D)
        found.append(2 * (x @ difference) + ((x @ gradient) * x).sum(1))
    return torch.cat(found).numpy()


def paired_test(first: float, second: float, influences_1: np.ndarray, influences_2: np.ndarray) -> PairedTest:
    """Compare two distances to one reference by the influences of their samples.

    Sets of equal size are compared image by image: what images i of both have in common (label, noise) cancels. If
    they have nothing in common, the result is that for independent sets.
    """
    is_paired = len(influences_1) == len(influences_2)
    if is_paired:
        error = _standard_error(influences_1 - influences_2)
    else:
        error = math.hypot(_standard_error(influences_1), _standard_error(influences_2))
    difference = first - second
    z = abs(difference) / error if error else (math.inf if difference else 0.0)
    p = math.erfc(z / math.sqrt(2))
    return PairedTest(difference, error, p, is_paired)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number (Holm, 1979), in the same order.

    The smallest counts as many times as there are values, the next one time less, and so on; none is below a smaller
    one's correction.
    """
    highest, corrected = 0.0, dict[int, float]()
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, p_values[i] * (len(p_values) - rank)))
        corrected[i] = highest
    return [corrected[i] for i in range(len(p_values))]


def _standard_error(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / len(values) ** 0.5)


def _transport(s1: np.ndarray, s2: np.ndarray) -> torch.Tensor:
    """S1^(-1/2) (S1^(1/2) S2 S1^(1/2))^(1/2) S1^(-1/2), (D, D), within the directions where S1 has variance."""
    values, vectors = torch.linalg.eigh(torch.from_numpy(s1))
    kept = values > values[-1].clamp(min=0) * len(values) * torch.finfo(torch.float64).eps
    v, root = vectors[:, kept], values[kept].sqrt()
    a = v * root  # (D, rank)
    inner, turned = torch.linalg.eigh(a.T @ torch.from_numpy(s2) @ a)
    middle = (turned * inner.clamp(min=0).sqrt()) @ turned.T  # (rank, rank)
    b = v / root
    return b @ middle @ b.T
