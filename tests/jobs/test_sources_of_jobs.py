"""What the commands say about their sources, and what they refuse when a source is another one than before."""

import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
import tiny
from image_files import encoded, noise
from PIL import Image
from remarks import Remarks
from tar_files import write_tar

from titokctl.cli.app import run
from titokctl.context import Context
from titokctl.data.sources.choices import Choices
from titokctl.errors import UserError
from titokctl.evaluation.extractors import FeatureNetwork
from titokctl.formats.token_cache import TokenCache
from titokctl.jobs.caches.verify import Verify
from titokctl.jobs.evaluate.fid import Fid
from titokctl.jobs.evaluate.reconstruct import Reconstruct
from titokctl.jobs.shard import Shard
from titokctl.jobs.tokenize.request import Tokenize
from titokctl.weights.store import save_tokenizer


def tokenizer(root: Path) -> str:
    path = root / "tok.safetensors"
    if not path.exists():
        tiny.tokenizer(path)
    return str(path)


def pictures(folder: Path, seed: int, count: int = 6) -> Path:
    """Uncompressed pictures: equal names and sizes whatever the seed."""
    for i in range(count):
        path = folder / ("cat", "dog")[i % 2] / f"{i}.bmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(noise(32, 32, seed=seed + i), "BMP"))
        os.utime(path, ns=(1, 1))
    return folder


def tokenize(root: Path, paths: list[Path], output: str = "t.h5", remarks: Remarks | None = None, **settings):
    context = Context(root / "runs", progress=remarks or Remarks())
    return Tokenize(paths, root / output, tokenizer(root), views=(), **settings).run(context)


def test_tokenize_accounts_for_everything_and_verify_checks_the_sum(tmp_path, capsys):
    folder = pictures(tmp_path / "in", 0)
    (folder / "cat" / "notes.txt").write_text("x")
    (folder / "cat" / "readme.txt").write_text("x")
    (folder / "dog" / "wrong.suffix").write_bytes(encoded(noise(9, 9)))
    (folder / "dog" / "broken.png").write_bytes(b"x")
    (folder / "emu").mkdir()
    words = ["tokenize", str(folder), "-o", str(tmp_path / "t.h5"), "--tokenizer", tokenizer(tmp_path)]
    assert run([*words, "--json", "--max-rejected", "0.5"]) == 0
    shown = capsys.readouterr()
    result = json.loads(shown.out)
    assert (result["rows"], result["rejected"], result["passed_over"]) == (7, 1, {".txt": 2})
    assert result["rows"] + result["rejected"] + sum(result["passed_over"].values()) == 10
    assert "3 classes from the folders of" in shown.err
    assert "1 class without images, which keep their numbers: emu" in shown.err
    assert "passed over: 2 .txt" in shown.err
    assert TokenCache.open(tmp_path / "t.h5").header.source["passed_over"] == {".txt": 2}
    assert run(["verify", str(tmp_path / "t.h5"), "--source", "recorded"]) == 0
    (folder / "cat" / "more.txt").write_text("x")
    capsys.readouterr()
    assert run(["verify", str(tmp_path / "t.h5"), "--source", "recorded"]) == 1
    assert "the source holds 3 .txt besides its images; 2 .txt was passed over" in capsys.readouterr().err


def test_unlabelled_rows_are_counted(tmp_path, capsys):
    members = [("a.png", tiny.jpeg(0)), ("a.cls", b"1"), ("b.png", tiny.jpeg(1)), ("b.json", b"no JSON")]
    path = write_tar(tmp_path / "s.tar", members)
    words = ["tokenize", str(path), "-o", str(tmp_path / "t.h5"), "--tokenizer", tokenizer(tmp_path), "--json"]
    assert run(words) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["rows"], result["rejected"], result["unlabelled"]) == (2, 0, 1)
    assert (result["passed_over"], result["label_files"]) == ({".json": 1}, 1)


def test_stopped_work_is_not_resumed_with_other_images(tmp_path):
    def shards(seed: int) -> list[Path]:
        members = [(f"{j}.bmp", encoded(noise(32, 32, seed=seed + j), "BMP")) for j in range(6)]
        paths = [write_tar(tmp_path / f"{i}.tar", members[3 * i : 3 * i + 3]) for i in range(2)]
        for path in paths:
            os.utime(path, ns=(1, 1))
        return paths

    assert not tokenize(tmp_path, shards(0), part="1/2").finished
    with pytest.raises(UserError, match=r"begun with other settings"):
        tokenize(tmp_path, shards(50), part="2/2")  # the same paths, sizes and times
    assert tokenize(tmp_path, shards(0), part="2/2").rows == 6


def test_a_finished_cache_of_other_images_is_not_the_result(tmp_path):
    tokenize(tmp_path, [pictures(tmp_path / "in", 0)])
    pictures(tmp_path / "in", 50)
    with pytest.raises(UserError):
        tokenize(tmp_path, [tmp_path / "in"])
    (problem,) = Verify(tmp_path / "t.h5", source="recorded").run(Context()).problems
    assert "the names and sizes are the same, but the contents differ" in problem


def test_fid_does_not_take_the_statistics_of_other_images(tmp_path):
    a, b = pictures(tmp_path / "a", 0), pictures(tmp_path / "b", 50)

    def judge(samples, reference):
        job = Fid(samples, reference, metrics=["kid"], network=FeatureNetwork("lite0"), save_features=True)
        return next(iter(job.run(Context(tmp_path / "runs")).metrics.values()))

    same = judge(a, a)
    assert judge(a, b) != same
    pictures(b, 0)
    assert judge(a, b) == same


def test_shards_are_not_resumed_or_taken_for_those_of_other_images(tmp_path):
    Shard([pictures(tmp_path / "in", 0)], tmp_path / "out").run(Context())
    Shard([tmp_path / "in"], tmp_path / "out").run(Context())  # complete already
    pictures(tmp_path / "in", 50)
    with pytest.raises(UserError):
        Shard([tmp_path / "in"], tmp_path / "out").run(Context())


def test_further_formats_are_packed_into_shards_and_read_from_them(tmp_path):
    folder = tmp_path / "in" / "cat"
    folder.mkdir(parents=True)
    for kind in ("BMP", "GIF", "TIFF", "PNG"):
        (folder / f"{kind}.x").write_bytes(encoded(noise(8, 8) // 64 * 64, kind))
    made = Shard([tmp_path / "in"], tmp_path / "out", shuffle=False).run(Context())
    assert (made.samples, made.rejected) == (4, [])
    again = tokenize(tmp_path, [tmp_path / "out"])
    assert (again.rows, again.rejected, again.passed_over) == (4, 0, {})


def test_options_reach_the_source(tmp_path, run_cli):
    for name in ("1", "2", "10"):
        pictures(tmp_path / "in" / "train" / name, int(name), 1)
        pictures(tmp_path / "in" / "test" / name, int(name) + 50, 1)
    words = ("tokenize", "in", "--tokenizer", tokenizer(tmp_path), "-o")
    refused = run_cli(*words, "a.h5", code=1)
    assert "--sort natural" in refused.stderr
    told = run_cli(*words, "a.h5", "--sort", "natural", "--split", "test", code=0)
    assert "reading the split test of in; not read: train" in told.stderr
    assert TokenCache.open(tmp_path / "a.h5").class_names == ["1", "2", "10"]
    run_cli(*words, "b.h5", "--no-labels", code=0)
    assert TokenCache.open(tmp_path / "b.h5").class_names == []
    wrong = run_cli(*words, "c.h5", "--no-labels", "--classes", "x.txt", code=2)
    assert "mutually exclusive" in wrong.stderr
    wrong = run_cli(*words, "c.h5", "--image-key", "a", "--image-column", "b", code=2)
    assert "mutually exclusive" in wrong.stderr


def turned(i: int) -> bytes:
    """A photo that its EXIF tag turns by 90 degrees."""
    exif, out = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    Image.fromarray(np.random.default_rng(i).integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(out, "JPEG", exif=exif)
    return out.getvalue()


def test_tokenize_and_reconstruct_follow_the_exif_setting_of_the_training(tmp_path):
    for i in range(3):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / f"{i}.jpg").write_bytes(turned(i))
    model = tiny.tokenizer(tmp_path / "tok.safetensors")
    recorded = {"inputs": json.dumps({"preprocessing": {"exif": True}})}
    save_tokenizer(tmp_path / "exif.safetensors", model, recorded)

    def ids(name: str, **settings) -> np.ndarray:
        output = tmp_path / f"{name}-{len(list(tmp_path.glob('*.h5')))}.h5"
        Tokenize([tmp_path / "in"], output, str(tmp_path / name), views=(), **settings).run(Context(tmp_path / "runs"))
        return TokenCache.open(output).ids

    upright, as_stored = ids("tok.safetensors", exif=True), ids("tok.safetensors")
    assert (upright != as_stored).any()
    np.testing.assert_array_equal(ids("exif.safetensors"), upright)
    np.testing.assert_array_equal(ids("exif.safetensors", exif=False), as_stored)
    for name, expected in (("exif.safetensors", True), ("tok.safetensors", False)):
        job = Reconstruct(
            [tmp_path / "in"], str(tmp_path / name), tmp_path / f"out-{name}", features="none", lpips=False
        )
        assert job.run(Context(tmp_path / "runs")).about["preprocessing"]["exif"] is expected


def test_fid_reads_the_same_images_with_and_without_exif_as_different_ones(tmp_path):
    for i in range(4):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / f"{i}.jpg").write_bytes(turned(i))
    found = [
        Fid(
            tmp_path / "in", tmp_path / "in", metrics=["kid"], network=FeatureNetwork("lite0"), exif=exif,
            choices=Choices(),
        ).run(Context(tmp_path / "runs"))
        for exif in (False, True)
    ]  # fmt: skip
    assert found[0].reference["statistics"] != found[1].reference["statistics"]


def test_a_source_that_is_named_again_is_read_with_the_choices_made_then(tmp_path):
    for name in ("1", "2", "10"):
        pictures(tmp_path / "in" / name, int(name), 1)
    tokenize(tmp_path, [tmp_path / "in"], choices=Choices(sort="natural"))
    (tmp_path / "in").rename(tmp_path / "moved")
    found = Verify(tmp_path / "t.h5", source=str(tmp_path / "moved")).run(Context())
    assert (found.problems, found.source_checked) == ([], True)
    (tmp_path / "moved" / "2" / "cat" / "note.txt").write_text("x")
    (problem,) = Verify(tmp_path / "t.h5", source=str(tmp_path / "moved")).run(Context()).problems
    assert "holds 1 .txt besides its images; nothing was passed over" in problem
