"""diff, preview, merge, neighbors, verify --sample and export --to wds, on a cache of images."""

import json
import tarfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import tiny
from caches import with_header, write_cache
from image_files import webdataset_samples
from PIL import Image

from titokctl.cli.app import run
from titokctl.config.models import VqganConfig
from titokctl.data.order import spread_positions
from titokctl.formats.token_cache import TokenCache


class Made:
    """Two classes of 10 images, one of them unreadable, and their cache."""

    def __init__(self, root: Path) -> None:
        self.root, self.tokenizer = root, root / "runs" / "tok.safetensors"
        self.tokenizer.parent.mkdir()
        self.model = tiny.tokenizer(self.tokenizer)
        self.images = tiny.class_folder(root / "images", per_class=10)
        (self.images / "cat" / "0003.jpg").write_bytes(b"broken")
        self.cache = self.tokenize("tokens.h5")

    def tokenize(self, name: str, *more: str) -> Path:
        words = ["tokenize", str(self.images), "-o", f"{self.root}/{name}", "--tokenizer", str(self.tokenizer)]
        assert run([*words, "--quiet", "--json", "--max-rejected", "0.1", *more]) == 0
        return self.root / name.rstrip("/")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("made"))


@pytest.fixture
def answer(capsys: pytest.CaptureFixture[str]):
    """Return a function that runs a command and returns its JSON."""

    def call(*words: object, code: int = 0) -> dict:
        capsys.readouterr()
        assert run([*map(str, words), "--json"]) == code
        return json.loads(capsys.readouterr().out)

    return call


def test_a_cache_agrees_with_itself(made: Made, answer) -> None:
    found = answer("diff", made.cache, made.cache)
    assert (found["share"], found["rows"], found["psnr"], found["rows_compared"]) == (0, 0, None, 19)
    assert found["share_by_position"] == [0.0] * tiny.TOKENS


def test_diff_counts_ids_by_position_and_decodes_what_differs(made: Made, answer, tmp_path: Path) -> None:
    bent = tmp_path / "bent.h5"
    bent.write_bytes(made.cache.read_bytes())
    with h5py.File(bent, "r+") as f:
        f["tokens"][4, 2] ^= 1
        f["tokens"][7, 2] ^= 3
        f["tokens"][7, 5] ^= 1
    found = answer("diff", made.cache, bent, "--tokenizer", made.tokenizer)
    assert found["share"] == pytest.approx(3 / (19 * tiny.TOKENS))
    assert found["rows"] == pytest.approx(2 / 19)
    assert found["share_by_position"][2] == pytest.approx(2 / 19)
    assert found["share_by_position"][0] == 0
    a, b = (TokenCache.open(path).ids[[4, 7]].astype(np.int64) for path in (made.cache, bent))
    left, right = ((made.model.detokenize(_tensor(rows)) * 255).round() for rows in (a, b))
    assert found["decoded_rows"] == 2
    expected = float(10 * np.log10(255**2 / ((left - right) ** 2).mean().item()))
    assert found["psnr_of_differing"] == pytest.approx(expected, abs=1e-3)
    assert found["psnr"] == pytest.approx(expected + 10 * np.log10(19 / 2), abs=1e-3)


def _tensor(rows: np.ndarray):
    import torch

    return torch.from_numpy(rows)


def test_diff_without_the_tokenizer_says_so(made: Made, capsys, tmp_path: Path) -> None:
    bent = tmp_path / "bent.h5"
    bent.write_bytes(made.cache.read_bytes())
    with h5py.File(bent, "r+") as f:
        f["tokens"][4, 2] ^= 1
    assert run(["diff", str(made.cache), str(bent), "--runs-dir", str(tmp_path)]) == 0
    assert "pixels are not compared" in capsys.readouterr().err


def test_diff_of_other_images_is_refused(made: Made, capsys, tmp_path: Path) -> None:
    assert run(["diff", str(made.cache), str(write_cache(tmp_path / "t.h5", 19))]) == 1
    assert "row 0 is cat/0000" in capsys.readouterr().err


@pytest.mark.parametrize("originals", [False, True])
def test_preview_draws_rows_and_their_originals(made: Made, answer, tmp_path: Path, originals: bool) -> None:
    out = tmp_path / "grid.png"
    more = ["--source", made.images] if originals else []
    found = answer("preview", made.cache, "-n", 5, "-o", out, "--tokenizer", made.tokenizer, *more)
    assert (found["rows"], found["with_originals"]) == (spread_positions(19, 5).tolist(), originals)
    picture = np.asarray(Image.open(out))
    assert picture.shape == ((2 if originals else 1) * (tiny.SIZE + 2) + 2, 5 * (tiny.SIZE + 2) + 2, 3)
    last = picture[-2 - tiny.SIZE : -2, 2 : 2 + tiny.SIZE]
    drawn = TokenCache.open(made.cache).ids[found["rows"][:1]].astype(np.int64)
    first = made.model.detokenize(_tensor(drawn))[0]
    np.testing.assert_array_equal(last, (first.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8))


def test_preview_of_another_source_or_tokenizer_is_refused(made: Made, capsys, tmp_path: Path) -> None:
    words = ["preview", str(made.cache), "-o", str(tmp_path / "grid.png"), "--tokenizer"]
    other = tiny.class_folder(tmp_path / "other", per_class=2)
    assert run([*words, str(made.tokenizer), "--source", str(other)]) == 1
    assert "made from other images" in capsys.readouterr().err
    tiny.tokenizer(tmp_path / "else.safetensors", seed=3)
    assert run([*words, str(tmp_path / "else.safetensors")]) == 1
    assert "another tokenizer" in capsys.readouterr().err
    assert not (tmp_path / "grid.png").exists()


def test_rows_whose_tokenizer_makes_no_pixels_are_refused(made: Made, capsys, tmp_path: Path) -> None:
    proxy = VqganConfig(
        channels=32, channel_multipliers=(1, 1, 1, 1), num_res_blocks=1
    )  # downsamples as the patches do
    weights = tmp_path / "proxy.safetensors"
    tiny.tokenizer(weights, head="proxy", proxy=proxy, pixel_decoder=False)
    caches = [tmp_path / name for name in ("a.h5", "b.h5")]
    for path in caches:
        more = ["--views", "none", "--max-rejected", "0.1", "--quiet"]
        assert run(["tokenize", str(made.images), "-o", str(path), "--tokenizer", str(weights), *more]) == 0
    with h5py.File(caches[1], "r+") as f:
        f["tokens"][4, 2] ^= 1
    with_it = ["--tokenizer", str(weights)]
    assert run(["preview", str(caches[0]), "-o", str(tmp_path / "grid.png"), *with_it]) == 1
    assert "does not produce pixels" in capsys.readouterr().err
    assert run(["diff", *map(str, caches), *with_it]) == 0
    assert "pixels are not compared: this tokenizer was trained in stage proxy" in capsys.readouterr().err


def test_merged_caches_are_their_rows_one_after_the_other(made: Made, answer, tmp_path: Path) -> None:
    parts = made.tokenize("kept/")
    found = answer("merge", made.cache, parts, "-o", tmp_path / "both.h5")
    assert (found["rows"], found["rows_of_inputs"]) == (38, [19, 19])
    one, both = TokenCache.open(made.cache), TokenCache.open(tmp_path / "both.h5")
    for rows in (slice(0, 19), slice(19, 38)):
        np.testing.assert_array_equal(both.ids[rows], one.ids)
        np.testing.assert_array_equal(both.view("flip")[rows], one.view("flip"))
        np.testing.assert_array_equal(both.labels[rows], one.labels)
        assert both.keys[rows].tolist() == one.keys.tolist()
    assert both.header.num_rejected == 2
    assert both.header.source["sources"] == [one.header.source] * 2
    found = answer("merge", parts, "-o", tmp_path / "small.h5", "--compress")
    assert found["sha256"] == one.sha256


def test_caches_that_do_not_fit_are_not_merged(made: Made, capsys, tmp_path: Path) -> None:
    other = made.tokenize("noflip.h5", "--views", "none")
    assert run(["merge", str(made.cache), str(other), "-o", str(tmp_path / "both.h5")]) == 1
    assert "views.flip" in capsys.readouterr().err
    assert not (tmp_path / "both.h5").exists()


def test_neighbors_finds_copies_within_and_between(made: Made, answer, tmp_path: Path) -> None:
    copies = made.images / "dog" / "copy.jpg"
    copies.write_bytes((made.images / "cat" / "0001.jpg").read_bytes())
    try:
        other = made.tokenize("copied.h5")
    finally:
        copies.unlink()
    within = answer("neighbors", other, "--max-distance", 0)
    pair = within["closest"][0]
    assert (pair["distance"], pair["key"], pair["other_key"]) == (0, "cat/0001", "dog/copy")
    assert (within["pairs"], within["rows"]) == (1, 2)
    between = answer("neighbors", made.cache, other, "--max-distance", 0)
    assert between["pairs"] == 20
    assert (between["rows"], between["others"], between["share_of_others"]) == (19, 20, 1.0)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_sampled_images_are_encoded_again_as_they_were(made: Made, answer, precision: str) -> None:
    cache = made.tokenize(f"{precision}.h5", "--precision", precision)
    found = answer("verify", cache, "--source", "recorded", "--sample", 12, "--tokenizer", made.tokenizer)
    assert found["agreement"] == {"images": 12, "share_of_ids": 1.0, "share_of_rows": 1.0, "made_with": {}}
    assert found["problems"] == []


def test_rows_that_differ_from_a_new_encoding_are_a_problem(made: Made, capsys, tmp_path: Path) -> None:
    bent = tmp_path / "bent.h5"
    bent.write_bytes(made.cache.read_bytes())
    with h5py.File(bent, "r+") as f:
        f["tokens"][:, 0] ^= 1
    assert run(["verify", str(bent), "--source", "recorded", "--sample", "19", "--tokenizer", str(made.tokenizer)]) == 1
    assert "100.0% of 19 images encoded again give other rows" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "record", "words"),
    [("made_with", {"tile": 10**9}, "no valid tile size"), ("made_with", {"precision": "int3"}, "no valid tile size"),
     ("preprocessing", {"size": 10**6}, "two image sizes"), ("preprocessing", {"crop": 3}, "no valid preprocessing")],
)  # fmt: skip
def test_an_invalid_record_of_how_the_rows_were_made_is_reported(
    made: Made, capsys, tmp_path: Path, name: str, record: dict, words: str
) -> None:
    bent = tmp_path / "bent.h5"
    bent.write_bytes(made.cache.read_bytes())
    with_header(bent, **{name: getattr(TokenCache.open(bent).header, name) | record})
    assert run(["verify", str(bent), "--source", "recorded", "--sample", "3", "--tokenizer", str(made.tokenizer)]) == 1
    assert words in capsys.readouterr().err


def test_folders_of_parts_are_verified_inspected_and_exported(made: Made, answer, tmp_path: Path) -> None:
    parts = made.tokenize("parts/")
    assert (
        answer("verify", parts, "--source", "recorded", "--sample", 3, "--tokenizer", made.tokenizer)["problems"] == []
    )
    found = answer("inspect", parts)
    assert (found["what"], found["facts"]["rows"]) == ("token cache in parts", 19)
    answer("export", parts, "--to", "npy", "-o", tmp_path / "ids.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "ids.npy", allow_pickle=False), TokenCache.open(made.cache).ids)
    (parts / "unit-00000000.safetensors").write_bytes(b"x")
    assert run(["verify", str(parts)]) == 1


def test_export_as_webdataset(made: Made, answer, tmp_path: Path) -> None:
    answer("export", made.cache, "--to", "wds", "-o", tmp_path / "wds")
    (shard,) = (tmp_path / "wds").glob("*.tar")
    samples, cache = webdataset_samples(shard), TokenCache.open(made.cache)
    assert [int(s["cls"]) for s in samples] == cache.labels.tolist()
    assert [json.loads(s["json"])["key"] for s in samples] == [cache.key(i) for i in range(19)]
    with tarfile.open(shard) as tar:
        file = tar.extractfile("000000004.npy")
        assert file is not None
        (tmp_path / "row.npy").write_bytes(file.read())
    np.testing.assert_array_equal(np.load(tmp_path / "row.npy", allow_pickle=False), cache.ids[4])
