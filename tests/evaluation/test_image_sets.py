"""Every kind of image set: the same promises for all of them."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny
import trained
from PIL import Image

from titokctl.cli.app import run
from titokctl.config.preprocessing import PreprocessingConfig
from titokctl.context import Context
from titokctl.data.sources import open_source
from titokctl.errors import UserError
from titokctl.evaluation.image_sets import (
    ArrayImages,
    ImageSet,
    Opening,
    OriginalImages,
    SampleSetImages,
    SourceImages,
    TokenCacheImages,
    open_images,
)

SIZE = trained.SIZE


def noise(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, SIZE, SIZE, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images in every form: arrays, files, shards, a sample set of each format, and a token cache with its source."""
    root = tmp_path_factory.mktemp("made")
    np.savez(root / "bytes.npz", noise(21))
    np.savez(root / "floats.npz", noise(21).astype(np.float32) / 255)
    (root / "files").mkdir()
    for i, image in enumerate(noise(21)):
        Image.fromarray(image).save(root / "files" / f"{i:03d}.png")
    (root / "files" / "007.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing")
    tiny.shards(root / "shards", 3, 7)
    folder = tiny.class_folder(root / "photos", per_class=6)
    source = open_source([folder]).description
    trained.generator_run(root / "runs", trained.tokenizer_run(root / "runs"), source=source)
    words = ["--runs-dir", str(root / "runs"), "--device", "cpu", "-q"]
    for form in ("npz", "png", "none"):
        assert run(["sample", "-n", "21", "--format", form, "-o", str(root / f"set-{form}"), *words]) == 0
    assert run(["tokenize", str(folder), "-o", str(root / "tokens.h5"), *words]) == 0
    return root


def original(opening: Opening, root: Path) -> ImageSet:
    return OriginalImages(open_images(root / "tokens.h5", opening).origin, opening)


def of(name: str, size: int | None = None) -> Callable[[Opening, Path], ImageSet]:
    preprocessing = None if size is None else PreprocessingConfig(size=size)
    return lambda opening, root: open_images(root / name, Opening(opening.context, None, preprocessing))


KINDS = {
    "bytes": (of("bytes.npz"), ArrayImages),
    "floats": (of("floats.npz"), ArrayImages),
    "files": (of("files"), SourceImages),
    "files at a size": (of("photos", 16), SourceImages),
    "shards": (of("shards", 16), SourceImages),
    "token cache": (of("tokens.h5"), TokenCacheImages),
    "sample set as npz": (of("set-npz"), SampleSetImages),
    "sample set as files": (of("set-png"), SampleSetImages),
    "sample set as ids": (of("set-none"), SampleSetImages),
    "origin of a cache": (original, OriginalImages),
}


@pytest.fixture(params=KINDS)
def images(request: pytest.FixtureRequest, made: Path) -> ImageSet:
    opened, kind = KINDS[request.param]
    found = opened(Opening(Context(made / "runs")), made)
    assert type(found) is kind
    return found


def test_a_range_has_the_pixels_of_the_whole(images):
    batches = list(images.read(range(images.count)))
    positions = [position for batch in batches for position in batch.positions]
    pixels = np.concatenate(list(images.pixels()))
    bad = sum(len(batch.rejected) for batch in batches)
    assert pixels.dtype == np.uint8
    assert pixels.shape[1:] == (images.image_size, images.image_size, 3)
    assert positions == sorted(set(positions))
    assert len(positions) + bad == images.count
    part = range(3, 12)
    of_part = [(p, x) for batch in images.read(part) for p, x in zip(batch.positions, batch.pixels, strict=True)]
    assert [p for p, _ in of_part] == [p for p in positions if p in part]
    for position, image in of_part:
        assert np.array_equal(image, pixels[positions.index(position)])
    assert list(images.read(range(5, 5))) == []


def test_reading_changes_nothing(images):
    before = {name: str(value) for name, value in vars(images).items()}
    for _ in range(2):
        rejected = [bad for batch in images.read(range(images.count)) for bad in batch.rejected]
        assert {name: str(value) for name, value in vars(images).items()} == before
    assert [bad.key for bad in rejected] == (["007"] if images.path.name == "files" else [])


def test_its_record_and_identity_are_json(images):
    for record in (images.about, images.identity(), images.identity(exact=True), images.origin):
        assert json.loads(json.dumps(record)) == record
    assert images.identity() == images.identity()
    assert images.about["kind"]


def test_what_it_says_of_itself_is_there(images):
    assert images.path.exists()
    assert images.labels is None or len(images.labels) == images.count
    beside = images.beside("lite0.json")
    assert beside is None or beside.parent.is_dir()


def test_other_images_have_another_identity(made, tmp_path):
    opening = Opening(Context(made / "runs"))
    np.savez(tmp_path / "a.npz", noise(3))
    np.savez(tmp_path / "b.npz", noise(3, 1))
    (tmp_path / "c").mkdir()
    identities = [open_images(tmp_path / name, opening).identity() for name in ("a.npz", "b.npz")]
    assert identities[0] != identities[1]
    Image.fromarray(noise(1)[0]).save(tmp_path / "c" / "0.png", compress_level=0)
    before = open_images(tmp_path / "c", opening)
    first, exactly = before.identity(), before.identity(exact=True)
    Image.fromarray(noise(1, 1)[0]).save(tmp_path / "c" / "0.png", compress_level=0)
    after = open_images(tmp_path / "c", opening)
    assert after.identity() != first  # name and size are the same, but not the contents
    assert after.identity(exact=True) != exactly


def test_what_holds_no_images_is_refused(made, tmp_path):
    opening = Opening(Context(made / "runs"))
    (tmp_path / "empty").mkdir()
    np.savez(tmp_path / "stats.npz", mu=np.zeros(3), sigma=np.eye(3))
    (tmp_path / "wrong.h5").write_bytes(b"nothing")
    for name in ("nowhere", "empty", "stats.npz", "wrong.h5"):
        with pytest.raises(UserError):
            open_images(tmp_path / name, opening)
