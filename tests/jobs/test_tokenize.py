"""The tokenize request: contents of the cache, refusals, unusable images, resuming, and jobs that divide the units."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from titokctl.config.preprocessing import PreprocessingConfig
from titokctl.context import Context
from titokctl.data.images import preprocess, to_float
from titokctl.data.sources import open_source
from titokctl.errors import UsageError, UserError
from titokctl.formats.token_cache import TokenCache
from titokctl.formats.token_parts import PartsFolder, all_parts
from titokctl.jobs.tokenize.encode import TileEncoder, UnitSettings, tokenize_unit
from titokctl.jobs.tokenize.output import allowed_share
from titokctl.jobs.tokenize.request import Tokenize, TokenizeResult
from titokctl.progress import Progress, SilentProgress
from titokctl.weights.hashes import encoder_sha256, weights_sha256


class Workspace:
    """A folder with a tokenizer, two classes of 20 pictures, and the command."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.model = tiny.tokenizer(root / "tokenizer.safetensors")
        self.images = tiny.class_folder(root / "images")
        self.output = root / "out" / "tokens.h5"
        self.parts = root / "out" / "tokens.h5.parts"
        self.rejected = root / "out" / "tokens.h5.rejected.jsonl"

    def run(self, *, device: str = "cpu", progress: Progress | None = None, **settings: Any) -> TokenizeResult:
        given = {"paths": [self.images], "output": self.output, "tokenizer": str(self.root / "tokenizer.safetensors")}
        job = Tokenize(**(given | {"max_rejected": 0.001} | settings))
        made = job.run(Context(self.root / "runs", device, progress or SilentProgress()))
        assert made is not None
        return made


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path)


def test_rows_are_the_ids_of_the_images_in_order(workspace: Workspace) -> None:
    result = workspace.run()
    assert (result.rows, result.rejected, result.samples, result.classes) == (40, 0, 40, 2)
    cache = TokenCache.open(workspace.output)
    files = sorted(workspace.images.rglob("*.jpg"))
    config = PreprocessingConfig(size=tiny.SIZE)
    images = to_float(torch.from_numpy(np.stack([preprocess(f.read_bytes(), config) for f in files])))
    np.testing.assert_array_equal(cache.ids, workspace.model.tokenize(images))
    np.testing.assert_array_equal(cache.view("flip"), workspace.model.tokenize(images.flip(-1)))
    assert (cache.ids != cache.view("flip")).any()
    assert [cache.key(i) for i in range(40)] == [
        f.relative_to(workspace.images).with_suffix("").as_posix() for f in files
    ]
    assert cache.labels.tolist() == [0] * 20 + [1] * 20
    assert cache.class_names == ["cat", "dog"]


def test_the_header_says_what_made_the_rows(workspace: Workspace) -> None:
    workspace.run()
    head = TokenCache.open(workspace.output).header
    assert head.tokenizer == workspace.model.config.model_dump(mode="json")
    assert (head.encoder_sha256, head.weights_sha256) == (
        encoder_sha256(workspace.model),
        weights_sha256(workspace.model),
    )
    assert (head.codebook_size, head.num_latent_tokens, head.image_size) == (tiny.CODES, tiny.TOKENS, tiny.SIZE)
    assert head.preprocessing == PreprocessingConfig(size=tiny.SIZE).model_dump(mode="json")
    assert head.views == {"flip": head.preprocessing | {"flip": True}}
    assert head.source["paths"] == [str(workspace.images)]
    assert head.num_rejected == 0
    assert {"device", "precision", "tile", "torch", "pillow", "libjpeg"} <= head.made_with.keys()
    assert head.made_with["precision"] == "float32"


def test_nothing_but_the_output_remains(workspace: Workspace) -> None:
    workspace.run()
    assert [p.name for p in workspace.output.parent.iterdir()] == ["tokens.h5"]


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 1), (5, 2), (16, 3), (64, 1)])
def test_contents_do_not_depend_on_batches_and_workers(workspace: Workspace, batch_size: int, workers: int) -> None:
    usual = workspace.run(output=workspace.root / "usual.h5")
    assert workspace.run(batch_size=batch_size, workers=workers).sha256 == usual.sha256


def test_ids_in_bf16_do_not_depend_on_batches_and_stay_near_float32(workspace: Workspace) -> None:
    exact = np.array(TokenCache.open(workspace.run().output).ids)
    by_batch = []
    for batch_size in (1, 5, 16):
        workspace.run(batch_size=batch_size, precision="bf16", overwrite=True)
        by_batch.append(np.array(TokenCache.open(workspace.output).ids))
    assert (by_batch[0] == by_batch[1]).all()
    assert (by_batch[0] == by_batch[2]).all()
    assert 0.9 < (by_batch[0] == exact).mean() < 1


def test_views_can_be_left_out(workspace: Workspace) -> None:
    workspace.run(views=())
    assert TokenCache.open(workspace.output).views == ("plain",)


def test_shards_and_folders_give_the_same_rows(workspace: Workspace) -> None:
    shards = tiny.shards(workspace.root / "shards", count=4, per_shard=10)
    workspace.run()
    workspace.run(paths=[shards], output=workspace.root / "shards.h5")
    ours, theirs = TokenCache.open(workspace.output), TokenCache.open(workspace.root / "shards.h5")
    np.testing.assert_array_equal(ours.ids, theirs.ids)
    assert theirs.labels.tolist() == [i % 3 for i in range(40)]


def plant_bad_images(workspace: Workspace) -> None:
    whole = tiny.jpeg(1)
    (workspace.images / "cat" / "0003x.jpg").write_bytes(whole[:-100])
    (workspace.images / "cat" / "0007x.jpg").write_text("this is a text")
    (workspace.images / "dog" / "zero.jpg").write_bytes(b"")


def test_unusable_images_are_named_and_fail_at_the_end(workspace: Workspace) -> None:
    plant_bad_images(workspace)
    with pytest.raises(UserError) as caught:
        workspace.run()
    assert "3 of 43 images" in caught.value.message
    assert "cat/0003x" in caught.value.message
    assert str(workspace.rejected) in caught.value.message
    assert "--max-rejected 0.073" in caught.value.hint
    assert not workspace.output.exists()
    lines = [json.loads(line) for line in workspace.rejected.read_text().splitlines()]
    assert [(line["key"], line["kind"]) for line in lines] == [
        ("cat/0003x", "truncated"), ("cat/0007x", "format"), ("dog/zero", "empty"),
    ]  # fmt: skip
    assert all(line["reason"] for line in lines)


def test_a_few_unusable_images_of_a_small_set_are_accepted() -> None:
    fails_from = {count: int(allowed_share(count) * count) + 1 for count in (19, 40, 300, 20_000, 1_281_167)}
    assert fails_from == {19: 1, 40: 3, 300: 11, 20_000: 21, 1_281_167: 1_282}


def test_a_higher_limit_resumes_without_encoding_again(workspace: Workspace) -> None:
    good = workspace.run(output=workspace.root / "good.h5")
    plant_bad_images(workspace)
    with pytest.raises(UserError):
        workspace.run()
    result = workspace.run(max_rejected=0.073)
    assert (result.rows, result.rejected, result.samples, result.units_reused) == (40, 3, 43, 1)
    assert result.rejected_by_kind == {"truncated": 1, "format": 1, "empty": 1}
    cache = TokenCache.open(workspace.output)
    assert cache.sha256 == good.sha256
    assert cache.header.num_rejected == 3
    assert sorted(p.name for p in workspace.output.parent.iterdir()) == ["tokens.h5", "tokens.h5.rejected.jsonl"]


def test_a_source_without_one_usable_image_makes_no_cache(workspace: Workspace) -> None:
    for file in workspace.images.rglob("*.jpg"):
        file.write_bytes(b"no picture")
    with pytest.raises(UserError, match="40 of 40 images"):
        workspace.run(max_rejected=1.0)
    assert not workspace.output.exists()


def test_samples_that_the_source_leaves_out_count_as_rejected(workspace: Workspace) -> None:
    import io
    import tarfile

    shards = tiny.shards(workspace.root / "shards", count=1, per_shard=4)
    with tarfile.open(shards / "001.tar", "w") as tar:
        member = tarfile.TarInfo("a.jpg")
        member.size = len(tiny.jpeg(0))
        for _ in range(2):
            tar.addfile(member, io.BytesIO(tiny.jpeg(0)))
        label = tarfile.TarInfo("a.cls")
        label.size = 1
        tar.addfile(label, io.BytesIO(b"x"))
    result = workspace.run(paths=[shards], max_rejected=0.9)
    assert result.rows + result.rejected == result.samples
    assert result.rejected == len(workspace.rejected.read_text().splitlines()) > 0


def test_an_existing_output_is_replaced_only_on_request(workspace: Workspace) -> None:
    workspace.run()
    before = workspace.output.read_bytes()
    assert workspace.run().finished
    with pytest.raises(UserError, match="made with other settings") as caught:
        workspace.run(views=())
    assert "--overwrite" in caught.value.hint
    assert workspace.output.read_bytes() == before
    workspace.run(overwrite=True, views=())
    assert workspace.output.read_bytes() != before
    with pytest.raises(UserError, match="is a folder"):
        workspace.run(output=workspace.root)


def test_the_output_of_a_run_that_was_killed_before_it_deleted_the_parts_is_kept(workspace: Workspace) -> None:
    begun(workspace)
    shutil.copytree(workspace.parts, workspace.root / "kept")
    made = workspace.run(max_rejected=0.1)
    before = workspace.output.read_bytes()
    shutil.copytree(workspace.root / "kept", workspace.parts)
    with pytest.raises(UserError, match=r"made with other settings:\n  views"):
        workspace.run(views=())
    again = workspace.run()
    assert (again.finished, again.rows, again.samples, again.sha256) == (True, 40, 41, made.sha256)
    assert workspace.output.read_bytes() == before
    assert sorted(p.name for p in workspace.output.parent.iterdir()) == ["tokens.h5", "tokens.h5.rejected.jsonl"]


class When(SilentProgress):
    """Calls `act` once, when the phase `what` starts or ends."""

    def __init__(self, what: str, act: Callable[[], None], at_end: bool = False) -> None:
        self.what, self.act, self.at_end = what, act, at_end
        self.now, self.said = "", ""

    def start(self, what: str, total: int | None, unit: str = "images", done: int = 0) -> None:
        self.now = what
        if not self.at_end:
            self._reach(what)

    def close(self) -> None:
        if self.at_end:
            self._reach(self.now)

    def say(self, text: str) -> None:
        self.said += f"{text}\n"

    def _reach(self, what: str) -> None:
        if what == self.what:
            self.what = ""
            self.act()


@pytest.fixture
def shards(workspace: Workspace) -> dict[str, Any]:
    return {"paths": [tiny.shards(workspace.root / "shards", count=5, per_shard=3)]}


def units_in(workspace: Workspace) -> list[int]:
    return sorted(PartsFolder(workspace.output).finished())


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (3, 1, 2)], ids=str)
def test_jobs_in_any_order_each_make_their_units_and_the_last_one_merges(
    workspace: Workspace, shards: dict, order: tuple[int, ...]
) -> None:
    whole = workspace.run(output=workspace.root / "whole.h5", **shards)
    made: list[int] = []
    for position, part in enumerate(order):
        result = workspace.run(part=f"{part}/3", **shards)
        assert result.finished == (position == 2)
        if not result.finished:
            made += range(part % 3, 5, 3)
            assert units_in(workspace) == sorted(made)
    assert (result.rows, result.sha256) == (15, whole.sha256)
    assert workspace.output.read_bytes() == (workspace.root / "whole.h5").read_bytes()
    assert [p.name for p in workspace.output.parent.iterdir()] == ["tokens.h5"]
    assert workspace.run(part="1/3", **shards).finished, "a task that is queued again finds the output"


def test_a_job_that_runs_again_makes_what_is_missing_or_damaged(workspace: Workspace, shards: dict) -> None:
    assert not workspace.run(part="0/2", **shards).finished
    folder = PartsFolder(workspace.output)
    folder.discard(4)
    folder.file(2).write_bytes(b"damaged")
    progress = When("", lambda: None)
    result = workspace.run(part="0/2", progress=progress, **shards)
    assert (result.finished, result.units_reused, units_in(workspace)) == (False, 1, [0, 2, 4])
    assert "other jobs are still working" in progress.said
    assert "--part 1/2" in progress.said, "the tasks to run again are named"
    assert workspace.run(part="1/2", **shards).finished


def test_another_number_of_jobs_uses_what_the_earlier_ones_made(workspace: Workspace, shards: dict) -> None:
    whole = workspace.run(output=workspace.root / "whole.h5", **shards)
    workspace.run(part="1/4", **shards)
    assert workspace.run(part="0/2", **shards).units_reused == 0
    result = workspace.run(part="1/2", **shards)
    assert (result.finished, result.units_reused, result.sha256) == (True, 1, whole.sha256)
    workspace.run(part="2/5", output=workspace.root / "two.h5", **shards)
    result = workspace.run(output=workspace.root / "two.h5", **shards)
    assert (result.units_reused, result.sha256) == (1, whole.sha256), "and so does one job for all"


def test_a_job_with_other_settings_is_refused(workspace: Workspace, shards: dict) -> None:
    workspace.run(part="0/2", **shards)
    with pytest.raises(UserError, match=r"begun with other settings:\n  views"):
        workspace.run(part="1/2", views=(), **shards)
    assert units_in(workspace) == [0, 2, 4]


def test_of_two_jobs_that_finish_at_the_same_time_one_merges(workspace: Workspace, shards: dict) -> None:
    """The second job arrives while the first one merges; parts are deleted when neither needs them."""
    whole = workspace.run(output=workspace.root / "whole.h5", **shards)
    workspace.run(part="1/2", **shards)
    second: list[TokenizeResult] = []
    progress = When("merge", lambda: second.append(workspace.run(part="1/2", **shards)))
    first = workspace.run(part="0/2", progress=progress, **shards)
    assert (first.finished, first.sha256) == (True, whole.sha256)
    assert [(one.finished, one.units_reused) for one in second] == [(False, 2)]
    assert [p.name for p in workspace.output.parent.iterdir()] == ["tokens.h5"]


def test_a_job_that_finishes_after_another_has_merged_returns_the_output(workspace: Workspace, shards: dict) -> None:
    workspace.run(part="1/2", **shards)
    second: list[TokenizeResult] = []
    progress = When("tokenize", lambda: second.append(workspace.run(part="1/2", **shards)), at_end=True)
    late = workspace.run(part="0/2", progress=progress, **shards)
    assert [one.finished for one in (late, *second)] == [True, True]
    assert late.sha256 == TokenCache.open(workspace.output).sha256
    assert [p.name for p in workspace.output.parent.iterdir()] == ["tokens.h5"]


def test_a_single_job_is_refused_while_jobs_divide_the_units(workspace: Workspace, shards: dict) -> None:
    refused: list[str] = []

    def alone() -> None:
        with pytest.raises(UserError) as caught:
            workspace.run(**shards)
        refused.append(caught.value.message)

    workspace.run(part="0/2", progress=When("tokenize", alone), **shards)
    assert "another titokctl is at work" in refused[0]


def test_jobs_keep_the_parts_in_a_folder(workspace: Workspace, shards: dict) -> None:
    kept: dict[str, Any] = {"output": workspace.root / "kept", "keep_parts": True}
    whole = workspace.run(**shards)
    assert not workspace.run(part="0/2", **kept, **shards).finished
    assert workspace.run(part="1/2", **kept, **shards).sha256 == whole.sha256
    assert sorted(p.name for p in (workspace.root / "kept").iterdir() if not p.name.startswith("unit-")) == [
        ".lock", "manifest.json",
    ]  # fmt: skip


def test_the_file_of_a_killed_merge_is_removed(workspace: Workspace) -> None:
    begun(workspace)
    left, other = (workspace.output.with_name(f".{name}.tmp-1-ab") for name in ("tokens.h5", "tokens2.h5"))
    left.write_bytes(b"half")
    other.write_bytes(b"of another")
    workspace.run(max_rejected=0.1)
    assert not left.exists()
    assert other.exists()


def begun(workspace: Workspace) -> None:
    """Leave the parts of a whole run behind, without an output."""
    (workspace.images / "dog" / "zero.jpg").write_bytes(b"")
    with pytest.raises(UserError, match="1 of 41"):
        workspace.run()
    assert workspace.parts.is_dir()


def test_changed_settings_are_refused_with_the_differences(workspace: Workspace) -> None:
    begun(workspace)
    tiny.tokenizer(workspace.root / "other.safetensors", seed=1)
    for changes, difference in (
        ({"crop": "adm"}, "preprocessing.crop: center -> adm"),
        ({"batch_size": 3}, "made_with.tile: 16 -> 3"),
        ({"precision": "bf16"}, "made_with.precision: float32 -> bf16"),
        ({"views": ()}, "views.flip"),
        ({"tokenizer": str(workspace.root / "other.safetensors")}, "encoder_sha256"),
    ):
        with pytest.raises(UserError, match="begun with other settings") as caught:
            workspace.run(max_rejected=0.5, **changes)
        assert difference in caught.value.message
        assert "--overwrite" in caught.value.hint
    (workspace.images / "dog" / "more.jpg").write_bytes(tiny.jpeg(99))
    with pytest.raises(UserError, match=r"source\.fingerprint"):
        workspace.run(max_rejected=0.5)
    assert workspace.run(max_rejected=0.5, overwrite=True).units_reused == 0


def test_overwrite_resumes_its_own_unfinished_run(workspace: Workspace) -> None:
    begun(workspace)
    assert workspace.run(max_rejected=0.5, overwrite=True).units_reused == 1


def test_a_damaged_part_is_made_again(workspace: Workspace) -> None:
    good = workspace.run(output=workspace.root / "good.h5")
    begun(workspace)
    part = next(workspace.parts.glob("unit-*"))
    data = bytearray(part.read_bytes())
    data[-20] ^= 1
    part.write_bytes(data)
    result = workspace.run(max_rejected=0.5)
    assert (result.units_reused, result.sha256) == (0, good.sha256)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"paths": ["nowhere"]}, UserError, "nowhere"),
        ({"views": ("ten",)}, UsageError, "'ten'"),
        ({"part": "9/8"}, UsageError, "9/8"),
        ({"part": "1/8", "overwrite": True}, UsageError, "mutually exclusive"),
        ({"output": Path(".")}, UserError, "can't be the name"),
        ({"output": Path("."), "keep_parts": True}, UserError, "can't be the name"),
        ({"device": "cuda"}, UsageError, "CUDA device"),
        ({"precision": "int3"}, UsageError, "int3"),
        ({"precision": "fp16"}, UsageError, "fp16"),
        ({"tokenizer": None}, UserError, "no tokenizer was named"),
        ({"tokenizer": "nothing.safetensors"}, UserError, "nothing.safetensors"),
    ],
)
def test_mistakes_are_refused_before_any_work(workspace: Workspace, settings: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        workspace.run(**settings)
    assert not workspace.output.parent.exists()


def test_gaussian_tokenizers_are_cached_as_latents(workspace: Workspace) -> None:
    model = tiny.tokenizer(workspace.root / "vae.safetensors", quantizer="gaussian", codebook_size=None)
    workspace.run(tokenizer=str(workspace.root / "vae.safetensors"))
    cache = TokenCache.open(workspace.output)
    images = to_float(torch.from_numpy(pictures(workspace)))
    assert (cache.latents.dtype, cache.latents.shape) == (np.float16, (40, tiny.TOKENS, 4))
    np.testing.assert_array_equal(cache.latents, model.tokenize(images).numpy().astype(np.float16))
    np.testing.assert_array_equal(cache.view("flip"), model.tokenize(images.flip(-1)).numpy().astype(np.float16))
    assert (cache.codebook_size, cache.header.token_size) == (0, 4)
    with pytest.raises(UserError, match="latents of a Gaussian tokenizer"):
        _ = cache.ids


def pictures(workspace: Workspace, config: PreprocessingConfig | None = None) -> np.ndarray:
    """Return all pictures in the order of the source, (n, S, S, 3) uint8."""
    config = config or PreprocessingConfig(size=tiny.SIZE)
    return np.stack([preprocess(f.read_bytes(), config) for f in sorted(workspace.images.rglob("*.jpg"))])


def test_ten_crops_are_corners_and_center_of_a_larger_square_and_their_mirror_images(workspace: Workspace) -> None:
    workspace.run(views=("flip", "ten-crop"))
    cache = TokenCache.open(workspace.output)
    assert len(cache.views) == 12
    larger = int(1.1 * tiny.SIZE)  # 35
    config = PreprocessingConfig(size=larger, crop="adm")
    images = to_float(torch.from_numpy(pictures(workspace, config)))
    size, free = tiny.SIZE, larger - tiny.SIZE
    for name, (top, left) in {"ten-top-left": (0, 0), "ten-bottom-right": (free, free), "ten-center": (2, 2)}.items():
        cut = images[..., top : top + size, left : left + size].contiguous()
        np.testing.assert_array_equal(cache.view(name), workspace.model.tokenize(cut))
        np.testing.assert_array_equal(cache.view(f"{name}-flip"), workspace.model.tokenize(cut.flip(-1)))
    assert (cache.view("ten-top-left") != cache.view("ten-bottom-right")).any()
    record = cache.header.views["ten-top-right"]
    assert (record["crop"], record["square"], record["size"], record["ten_crop"]) == ("adm", 35, 32, "top-right")
    assert record["flip"] is False


def test_one_of_the_ten_crops_can_be_named(workspace: Workspace) -> None:
    workspace.run(views=("ten-center", "flip", "ten-center"))
    assert TokenCache.open(workspace.output).views == ("plain", "flip", "ten-center")


def test_a_folder_keeps_the_parts_and_reads_like_the_file(workspace: Workspace) -> None:
    result, kept = workspace.run(), workspace.run(output=workspace.root / "kept", keep_parts=True)
    assert kept.sha256 == result.sha256
    assert sorted(p.name for p in (workspace.root / "kept").iterdir()) == [
        ".lock", "manifest.json", "unit-00000000.safetensors",
    ]  # fmt: skip
    assert workspace.run(output=workspace.root / "kept", keep_parts=True).sha256 == result.sha256
    assert workspace.run(output=workspace.root / "kept", keep_parts=True, overwrite=True).sha256 == result.sha256
    file, folder = TokenCache.open(workspace.output), TokenCache.open(workspace.root / "kept")
    assert (file.sha256, file.header) == (folder.sha256, folder.header)


def test_a_folder_with_other_files_is_not_modified(workspace: Workspace) -> None:
    (workspace.root / "kept").mkdir()
    (workspace.root / "kept" / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="is not empty"):
        workspace.run(output=workspace.root / "kept", keep_parts=True)


def test_compressed_rows_are_the_same(workspace: Workspace) -> None:
    result = workspace.run()
    assert workspace.run(output=workspace.root / "small.h5", compress=True).sha256 == result.sha256
    np.testing.assert_array_equal(
        TokenCache.open(workspace.root / "small.h5").ids, TokenCache.open(workspace.output).ids
    )
    with pytest.raises(UsageError, match="one file"):
        workspace.run(output=workspace.root / "kept", keep_parts=True, compress=True)


def test_a_damaged_part_is_deleted_when_the_merge_finds_it(workspace: Workspace) -> None:
    begun(workspace)
    part = next(workspace.parts.glob("unit-*"))
    part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"damaged.*deleted"):
        list(all_parts(PartsFolder(workspace.output), 1))
    assert not part.exists()


@pytest.mark.parametrize("workers", [1, 3])
def test_a_unit_becomes_the_part_that_the_command_writes(workspace: Workspace, shards: dict, workers: int) -> None:
    """A part depends on source, unit, tokenizer and settings alone, so any engine may make it anywhere."""
    workspace.run(part="1/2", **shards)
    whole = workspace.run(output=workspace.root / "whole.h5", **shards)
    source, settings = open_source(**shards), UnitSettings.of(TokenCache.open(whole.output).header, "cpu")
    ours, elsewhere = PartsFolder(workspace.output), PartsFolder(workspace.root / "elsewhere.h5")
    elsewhere.path.mkdir()
    seen: list[int] = []
    elsewhere.write(tokenize_unit(source, source.units[3], workspace.model, settings, workers, advance=seen.append))
    made, expected = elsewhere.read(3), ours.read(3)
    assert made is not None
    assert expected is not None
    np.testing.assert_equal(vars(made), vars(expected))
    assert made.sha256 == expected.sha256
    assert sum(seen) == 3
    encoder = TileEncoder(workspace.model, settings)
    assert tokenize_unit(source, source.units[3], encoder, settings).sha256 == made.sha256
    with pytest.raises(ValueError, match="prepared with"):
        tokenize_unit(source, source.units[3], encoder, replace(settings, views=()))


def test_a_unit_needs_no_settings_but_the_defaults(workspace: Workspace) -> None:
    """The default settings are those of the command."""
    workspace.run()
    source = open_source([workspace.images])
    part = tokenize_unit(source, source.units[0], workspace.model, UnitSettings())
    np.testing.assert_array_equal(part.ids, TokenCache.open(workspace.output).ids)
    np.testing.assert_array_equal(part.views["flip"], TokenCache.open(workspace.output).view("flip"))
