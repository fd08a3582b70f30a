"""From sources to pixels: in order, whatever the number of workers; nothing lost in silence."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import class_folders, encoded, noise

from titokctl.config.preprocessing import PreprocessingConfig
from titokctl.data.images import decode, preprocess, shorter_edge_to
from titokctl.data.pipeline import decode_units
from titokctl.data.sources import Source, open_source
from titokctl.data.training_images import Augmentation, TrainingImages
from titokctl.data.workers import in_order
from titokctl.errors import UserError

CONFIG = PreprocessingConfig(size=16)


@pytest.fixture
def source(tmp_path: Path) -> Source:
    class_folders(tmp_path / "in", each=30)
    return open_source([tmp_path / "in"])


def spoil(source: Source, position: int) -> None:
    path = Path(source.description["paths"][0]) / source.names[position]  # type: ignore[attr-defined]
    path.write_bytes(path.read_bytes()[:200])


@pytest.mark.parametrize("workers", [1, 3])
def test_a_unit_is_decoded_in_order(source: Source, workers: int) -> None:
    [unit] = decode_units(source, [source.units[0]], CONFIG, workers)
    samples = source.read_many(range(60))
    assert unit.keys == [s.key for s in samples]
    assert unit.labels.tolist() == [0] * 30 + [1] * 30
    assert unit.labels.dtype == np.int32
    np.testing.assert_array_equal(unit.pixels, [preprocess(s.data, CONFIG) for s in samples])
    assert not unit.rejected


def test_images_that_cannot_be_decoded_are_named(source: Source) -> None:
    for position in (0, 17, 59):
        spoil(source, position)
    source = open_source(source.description["paths"])
    [unit] = decode_units(source, [source.units[0]], CONFIG, 2)
    assert [r.key for r in unit.rejected] == [source.keys()[p] for p in (0, 17, 59)]
    assert {r.kind for r in unit.rejected} <= {"truncated", "unreadable"}
    kept = [p for p in range(60) if p not in (0, 17, 59)]
    assert unit.positions.tolist() == kept
    assert unit.keys == [source.keys()[p] for p in kept]
    assert len(unit.pixels) == len(unit.labels) == 57


def test_units_follow_each_other(source: Source, tmp_path: Path) -> None:
    source.units[:] = [type(source.units[0])(i, 20 * i, 20, "") for i in range(3)]
    units = list(decode_units(source, source.units, CONFIG, 2))
    assert [key for unit in units for key in unit.keys] == source.keys()
    assert [len(u.pixels) for u in units] == [20, 20, 20]


def test_results_come_in_the_order_of_the_tasks() -> None:
    gate = threading.Event()

    def slow_first(i: int) -> int:
        if i == 0:
            gate.wait(10)
        else:
            gate.set()
        return i * i

    assert list(in_order(slow_first, range(20), 3)) == [(i, i * i) for i in range(20)]


def test_an_error_of_a_worker_reaches_the_caller() -> None:
    def fail(i: int) -> int:
        raise ArithmeticError(f"task {i}")

    with pytest.raises(ArithmeticError, match="task 0"):
        list(in_order(fail, range(100), 2))


def test_training_batches_are_windows_of_the_scaled_image(source: Source) -> None:
    images = TrainingImages(source, 16, Augmentation(seed=4))
    at = np.arange(60)
    batch = images.batch(np.zeros(60, int), at)
    assert batch.shape == (60, 16, 16, 3)
    assert batch.dtype == torch.uint8
    for i, sample in enumerate(source.read_many(at)):
        whole = shorter_edge_to(decode(sample.data), 16)
        views = [v for x in range(whole.shape[1] - 15) for y in range(whole.shape[0] - 15)
                 for v in (whole[y : y + 16, x : x + 16], whole[y : y + 16, x : x + 16][:, ::-1])]  # fmt: skip
        assert any(np.array_equal(batch[i].numpy(), v) for v in views)


def test_crop_and_flip_depend_on_seed_epoch_and_position_alone(source: Source) -> None:
    kept = TrainingImages(source, 16, Augmentation(seed=1))
    fresh = TrainingImages(source, 16, Augmentation(seed=1), keep_bytes=0, workers=1)
    epochs, at = np.array([0, 3, 0, 3, 1]), np.array([5, 5, 59, 0, 5])
    first = kept.batch(epochs, at)
    assert torch.equal(first, fresh.batch(epochs, at))
    assert torch.equal(first, kept.batch(epochs, at))
    assert torch.equal(first[[2, 0]], kept.batch(epochs[[2, 0]], at[[2, 0]]))
    every = np.arange(60)
    one, two = (kept.batch(np.full(60, e), every) for e in (0, 1))
    other = TrainingImages(source, 16, Augmentation(seed=2)).batch(np.zeros(60, int), every)
    assert not torch.equal(one, two)
    assert not torch.equal(one, other)


def test_without_augmentation_batches_are_center_crops(source: Source) -> None:
    images = TrainingImages(source, 16, Augmentation("center", flip=False))
    expected = next(decode_units(source, [source.units[0]], CONFIG)).pixels
    for epoch in (0, 1):
        np.testing.assert_array_equal(images.batch([epoch] * 60, range(60)), expected)


def test_a_kept_set_is_read_once(source: Source) -> None:
    images = TrainingImages(source, 16)
    before = images.batch([0] * 60, range(60))
    for name in source.names:  # type: ignore[attr-defined]
        (Path(source.description["paths"][0]) / name).unlink()
    assert torch.equal(images.batch([0] * 60, range(60)), before)


def test_a_bad_image_is_replaced_by_the_next_good_one(tmp_path: Path) -> None:
    for i in range(200):
        (tmp_path / f"{i:03d}.png").write_bytes(encoded(noise(16, 16, seed=i)))
    for i in (50, 199, 100):
        (tmp_path / f"{i:03d}.png").write_bytes(b"")
    images = TrainingImages(open_source([tmp_path]), 16, Augmentation(flip=False))
    batch = images.batch([0, 0, 0, 0], [50, 51, 199, 0])
    assert torch.equal(batch[0], batch[1])
    assert torch.equal(batch[2], batch[3])
    assert [(r.key, r.kind) for r in images.problems.rejected] == [("050", "empty"), ("199", "empty")]
    with pytest.raises(UserError, match=r"3 of 200 images can't be decoded: 050 \(empty"):
        images.batch([0], [100])


def test_images_smaller_than_the_crop_are_scaled_up_and_counted(tmp_path: Path) -> None:
    for i, size in enumerate((16, 15, 40, 9)):
        (tmp_path / f"{i}.png").write_bytes(encoded(noise(size, 20, seed=i)))
    images = TrainingImages(open_source([tmp_path]), 16)
    for _ in range(2):
        assert images.batch([0] * 4, range(4)).shape == (4, 16, 16, 3)
    assert images.problems.upscaled == 2
    (said,) = images.problems.remarks()
    assert "2 images smaller than 16 px, scaled up" in said


def test_extremely_long_images_are_not_kept(tmp_path: Path) -> None:
    (tmp_path / "long.png").write_bytes(encoded(noise(4, 4000)))
    images = TrainingImages(open_source([tmp_path]), 16, Augmentation(flip=False))
    assert images.batch([0, 1], [0, 0]).shape == (2, 16, 16, 3)
    assert images.kept_bytes == 0
