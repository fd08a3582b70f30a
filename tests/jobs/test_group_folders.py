"""Files and folders get the rights that the umask leaves, so that a group can share runs and outputs, or nobody can."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tiny
import toy_features
import trained
from caches import write_cache

from titokctl.cli.app import run

RECIPE = """
kind: generator
model: {architecture: vit, num_latent_tokens: 8, codebook_size: 16, num_classes: 3, width: 16, num_layers: 1,
        num_heads: 2, mlp_width: 32}
views: [plain, flip]
optimizer: {learning_rate: 1e-3, betas: [0.9, 0.96], weight_decay: 0.03}
schedule: {warmup_steps: 1}
training: {steps: 2, global_batch_size: 4, ema_decay: 0.9, checkpoint_every: 1}
"""
COMMANDS = (
    "tokenize images -o t.h5 --tokenizer tok.safetensors",
    "tokenize images -o parts/ --tokenizer tok.safetensors",
    "tokenize broken -o b.h5 --tokenizer tok.safetensors --max-rejected 0.9",
    "shard images -o shards --per-shard 2",
    "train-gen gen.h5 --recipe small.yaml --name new --device cpu",
    *(
        f"sample --generator gen --tokenizer tok --device cpu -n 4 -o {form} --format {form}"
        for form in ("npz", "png", "wds")
    ),
    "sample --generator gen --tokenizer tok --device cpu -n 4",
    "fid npz --ref ref.npz --features toy --save-features",
    "stats npz -o stats.npz --features toy",
    "decode npz/ids.h5 -o decoded.npz --device cpu",
    "export t.h5 --to jsonl -o t.jsonl",
    "merge t.h5 t.h5 -o merged.h5",
    "convert tok.safetensors -o converted.safetensors",
    "report new -o page.html",
    "recipes cp tokenizer/tiny mine.yaml",
)


@pytest.fixture(params=[0o002, pytest.param(0o077, marks=pytest.mark.slow)], ids=["a group", "nobody else"])
def mask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_the_umask_decides(mask: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path / "package")
    toy_features.install(tmp_path / "package")
    trained.both(tmp_path / "runs")
    tiny.tokenizer(tmp_path / "tok.safetensors")
    tiny.class_folder(tmp_path / "images", per_class=2)
    tiny.class_folder(tmp_path / "broken", per_class=1)
    (tmp_path / "broken" / "cat" / "bad.jpg").write_bytes(b"bad")
    write_cache(tmp_path / "gen.h5", 8)
    (tmp_path / "small.yaml").write_text(RECIPE)
    np.savez("ref.npz", arr_0=np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8))
    for words in COMMANDS:
        assert run([*words.split(), "--quiet"][: -1 if words.startswith("recipes") else None]) == 0, (
            words + capsys.readouterr().err
        )
    found = [p for p in tmp_path.rglob("*") if "package" not in p.parts]
    assert {".lock", "run.json", "images.npz", "evaluation-toy.json", "state.json"} <= {p.name for p in found}
    wrong = {
        str(p.relative_to(tmp_path)): oct(stat.S_IMODE(p.stat().st_mode))
        for p in found
        if stat.S_IMODE(p.stat().st_mode) != (0o777 if p.is_dir() else 0o666) & ~mask
    }
    assert wrong == {}
