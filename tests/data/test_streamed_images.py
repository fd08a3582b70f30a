"""Training from shards on a server: exactly once per epoch for any number of processes, resumed by the shard."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from image_files import encoded
from shard_server import Server
from tar_files import tar_bytes

from titokctl.data.sources import Source, open_source
from titokctl.data.streamed_images import StreamedImages
from titokctl.data.training_images import Augmentation
from titokctl.errors import UserError

SIZE = 8
COUNTS = (7, 1, 12, 5, 9)
TOTAL = sum(COUNTS)


def picture(i: int) -> bytes:
    """A picture that is identified by its first pixel."""
    return encoded(np.full((SIZE, SIZE, 3), i, np.uint8))


def number_of(pixels: np.ndarray) -> list[int]:
    return [int(one[0, 0, 0]) for one in pixels]


@pytest.fixture
def source(server: Server) -> Source:
    first = 0
    for s, n in enumerate(COUNTS):
        members = [(f"{i:04d}.png", picture(i)) for i in range(first, first + n)]
        server.files[f"s-{s}.tar"] = tar_bytes([*members, *[(f"{first + n:04d}.txt", b"beside")]])
        first += n
    return open_source([f"{server.url}/s-{{0..4}}.tar"])


def seen(images: StreamedImages, steps: range) -> list[int]:
    return [n for step in steps for n in number_of(images.batch(step).numpy())]


@pytest.mark.parametrize("processes", [1, 2, 3, 8])
def test_an_epoch_holds_every_sample_once_for_any_number_of_processes(source: Source, processes: int) -> None:
    epochs: list[list[int]] = [[], [], []]
    for rank in range(processes):
        mine = TOTAL * (rank + 1) // processes - TOTAL * rank // processes
        images = StreamedImages(source, SIZE, 1, rank, processes, buffer=6)
        stream = seen(images, range(3 * mine))
        for number in range(3):
            epochs[number] += stream[number * mine : (number + 1) * mine]
    for epoch in epochs:
        assert sorted(epoch) == list(range(TOTAL))
    assert epochs[0] != epochs[1]


def test_batches_run_over_the_ends_of_epochs_and_are_shuffled(source: Source) -> None:
    images = StreamedImages(source, SIZE, 5, buffer=10)
    stream = seen(images, range(20))
    assert sorted(stream[:TOTAL]) == sorted(stream[TOTAL : 2 * TOTAL]) == list(range(TOTAL))
    assert stream[:TOTAL] != sorted(stream[:TOTAL])
    assert stream == seen(StreamedImages(source, SIZE, 5, buffer=10), range(20)), "the same again"
    assert stream != seen(StreamedImages(source, SIZE, 5, buffer=10, augmentation=Augmentation(seed=1)), range(20))


def test_batches_may_be_asked_for_ahead_and_again(source: Source) -> None:
    images = StreamedImages(source, SIZE, 2)
    ahead = [images.batch(step).tolist() for step in (0, 1, 2, 3, 4)]
    assert [images.batch(step).tolist() for step in (0, 1, 2, 3, 4)] == ahead


def test_it_resumes_at_the_shard_it_was_in(source: Source, server: Server) -> None:
    whole = seen(StreamedImages(source, SIZE, 1, buffer=1), range(TOTAL))
    server.asked.clear()
    resumed = StreamedImages(source, SIZE, 1, buffer=1)
    stream = seen(resumed, range(20, 20 + TOTAL))
    shards = [next(s for s in range(5) if i < sum(COUNTS[: s + 1])) for i in whole]
    again = whole.index(next(i for i, s in zip(whole, shards, strict=True) if s == shards[20]))
    assert stream[: TOTAL - again] == whole[again:], "from the first sample of that shard on"
    assert again <= 20
    asked = {name for name, _ in server.asked[:2]}
    assert f"s-{shards[20]}.tar" in asked


def test_crops_depend_on_seed_epoch_and_sample_alone(server: Server) -> None:
    rng = np.random.default_rng(0)
    wide = [encoded(rng.integers(0, 255, (SIZE, 30, 3)).astype(np.uint8)) for _ in range(6)]
    server.files = {"a.tar": tar_bytes([(f"{i}.png", wide[i]) for i in range(6)])}
    source = open_source([f"{server.url}/a.tar"])
    one = {StreamedImages(source, SIZE, 6).batch(0).numpy()[i].tobytes() for i in range(6)}
    other = [StreamedImages(source, SIZE, 3, rank, 2).batch(0).numpy() for rank in (0, 1)]
    assert one == {square.tobytes() for squares in other for square in squares}
    assert one != {StreamedImages(source, SIZE, 6).batch(1).numpy()[i].tobytes() for i in range(6)}


def test_bad_images_are_left_out_and_named(server: Server) -> None:
    members = [(f"{i:04d}.png", picture(i % 200) if i != 5 else b"none") for i in range(300)]
    server.files = {"a.tar": tar_bytes(members)}
    images = StreamedImages(open_source([f"{server.url}/a.tar"]), 2 * SIZE, 23)
    counted = Counter(seen(images, range(13)))
    assert counted[5] == 1, "of the second hundred, where it is whole"
    assert sum(counted.values()) == 299
    assert [r.key for r in images.problems.rejected] == ["0005"]
    assert images.problems.upscaled == 299


def test_sources_that_cannot_be_trained_on_are_refused(server: Server, source: Source) -> None:
    with pytest.raises(UserError, match="34 images are too few for 40 processes"):
        StreamedImages(source, SIZE, 1, 0, 40)
    server.files = {"x.tar": tar_bytes([("a.png", b"none")])}
    with pytest.raises(UserError, match=r"no usable image in a whole epoch: 1 image that can't be decoded"):
        StreamedImages(open_source([f"{server.url}/x.tar"]), SIZE, 1).batch(0)
    server.files = {"y.tar": tar_bytes([(f"{i}.png", b"none") for i in range(30)])}
    with pytest.raises(UserError, match=r"2 of 30 images can't be decoded"):
        StreamedImages(open_source([f"{server.url}/y.tar"]), SIZE, 4).batch(0)


def test_nothing_of_a_shard_is_unpickled(server: Server, tmp_path: Path) -> None:
    bomb = b"cos\nsystem\n(S'touch " + str(tmp_path / "ran").encode() + b"'\ntR."
    members = [("a.png", picture(3)), ("a.pyd", bomb), ("a.pickle", bomb), ("a.pth", bomb)]
    server.files = {"x.tar": tar_bytes(members)}
    images = StreamedImages(open_source([f"{server.url}/x.tar"]), SIZE, 2)
    assert number_of(images.batch(0).numpy()) == [3, 3]
    assert not (tmp_path / "ran").exists()
