"""Held-out numbers while a tokenizer trains: exactly once, in one process and in two, with the right numbers."""

import json
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

import titokctl
from titokctl.config.preprocessing import PreprocessingConfig
from titokctl.context import Context
from titokctl.data.images import preprocess, to_bytes, to_float
from titokctl.data.sources import open_source
from titokctl.distributed.group import single_group
from titokctl.distributed.launch import run_workers
from titokctl.errors import UserError
from titokctl.evaluation.baselines import PrincipalAxes
from titokctl.evaluation.codebook_usage import usage_of
from titokctl.evaluation.extractors import open_extractor
from titokctl.evaluation.features import extract_all
from titokctl.evaluation.frechet import frechet_distance, gaussian_of
from titokctl.evaluation.reconstruction import ReconstructionSums
from titokctl.formats.metrics_log import MetricsLog
from titokctl.jobs.train.validation import Validation, held_out_baselines


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("made")
    # More than one batch, and no multiple of it.
    return tiny.tokenizer(root / "tok.safetensors"), root / "tok.safetensors", tiny.class_folder(root / "photos", 45)


def expected(tokenizer, folder):
    source = open_source([folder])
    config = PreprocessingConfig(size=tiny.SIZE)
    pixels = np.stack([preprocess(s.data, config) for s in source.read_many(range(len(source)))])
    ids = tokenizer.tokenize(to_float(torch.from_numpy(pixels)))
    made = to_bytes(tokenizer.detokenize(ids)).numpy()
    sums = ReconstructionSums()
    sums.add(pixels, made)
    usage = usage_of(np.bincount(ids.numpy().ravel(), minlength=tiny.CODES))
    score = sums.score()
    numbers = {"val_psnr": score.psnr_pooled, "val_ssim": score.ssim, "val_psnr_mean_colour": score.psnr_mean_colour,
               "val_codebook_usage": usage.share,
               "val_perplexity": usage.perplexity}  # fmt: skip
    return numbers, pixels, made


def test_numbers_are_those_of_all_images_once(made, tmp_path):
    tokenizer, _, folder = made
    validate = Validation(open_source([folder]), tiny.SIZE, tmp_path, single_group(), None, print)
    first, again = validate(tokenizer, 1), validate(tokenizer, 2)
    assert first == again == pytest.approx(expected(tokenizer, folder)[0], rel=1e-9)
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"reconstructions-0000000{i}.png" for i in (1, 2)]


def test_baselines_are_computed_once_from_training_images(made, tmp_path):
    """They follow the numbers that are there already, in any order of validation, and a resumed run keeps them."""
    tokenizer, _, folder = made
    source, log = open_source([folder]), MetricsLog(tmp_path / "metrics.jsonl")
    preprocessing = PreprocessingConfig(size=tiny.SIZE)

    def baselines():
        return held_out_baselines(source, preprocessing, {}, log, Context(tmp_path))

    def validated(given):
        return Validation(source, tiny.SIZE, tmp_path, single_group(), None, print, baselines=given)

    validate = validated(baselines())
    first, again = validate(tokenizer, 1), validate(tokenizer, 2)
    numbers, pixels, _ = expected(tokenizer, folder)
    axes = PrincipalAxes(pixels)
    numbers["val_psnr_pca"] = axes.psnr_of_numbers(pixels, tiny.TOKENS)
    numbers["val_psnr_gaussian"] = axes.psnr_of_bits(pixels, tiny.TOKENS * np.log2(tiny.CODES))
    assert first == again == pytest.approx(numbers, rel=1e-4)
    log.append(2, {"val_psnr_pca": 12.5, "val_psnr_gaussian": 13.5})
    kept = validated(baselines())(tokenizer, 3)
    assert (kept["val_psnr_pca"], kept["val_psnr_gaussian"]) == (12.5, 13.5)


def test_the_distance_is_that_of_the_reconstructions_to_their_originals(made, tmp_path):
    tokenizer, _, _ = made
    folder = tiny.class_folder(tmp_path / "photos", 3)
    extractor, threads = open_extractor("lite0"), torch.get_num_threads()
    validate = Validation(open_source([folder]), tiny.SIZE, tmp_path, single_group(), extractor, print)
    found = validate(tokenizer, 1)
    assert torch.get_num_threads() == threads, "training goes on as before"
    numbers, pixels, reconstructed = expected(tokenizer, folder)
    distance = found.pop("val_rfd-lite0")
    assert found == pytest.approx(numbers, rel=1e-9)
    features = [gaussian_of(extract_all(extractor, [x])["pool"]) for x in (pixels, reconstructed)]
    assert distance == pytest.approx(frechet_distance(*features), rel=1e-6)


def test_bad_images_are_left_out_and_said_once(made, tmp_path):
    tokenizer, _, _ = made
    folder = tiny.class_folder(tmp_path / "photos", 3)
    numbers, _, _ = expected(tokenizer, folder)
    (folder / "cat" / "none.jpg").write_bytes(b"none")
    said = []
    validate = Validation(open_source([folder]), tiny.SIZE, tmp_path, single_group(), None, said.append)
    assert validate(tokenizer, 1) == validate(tokenizer, 2) == pytest.approx(numbers, rel=1e-9)
    assert len(said) == 1
    assert "leaving out 1 held-out image that can't be decoded: cat/none" in said[0]
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "none.jpg").write_bytes(b"none")
    with pytest.raises(UserError, match="none of the held-out images"):
        Validation(open_source([tmp_path / "bad"]), 8, tmp_path, single_group(), None, print)(tokenizer, 1)


WORKER = """
import json, sys
from titokctl.distributed import worker
worker.started()
from titokctl.config.preprocessing import PreprocessingConfig
from titokctl.context import Context
from titokctl.data.sources import open_source
from titokctl.distributed.group import process_group
from titokctl.formats.metrics_log import MetricsLog
from titokctl.jobs.train.validation import Validation, held_out_baselines
from titokctl.weights.load import load_tokenizer
from pathlib import Path
weights, folder, training, out = sys.argv[1:5]
with process_group("cpu") as group:
    log, size = MetricsLog(Path(out).with_suffix(".jsonl")), PreprocessingConfig(size=32)
    context = Context(Path(out).parent, group=group)
    baselines = held_out_baselines(open_source([training]), size, {}, log, context)
    validate = Validation(open_source([folder]), 32, Path(out).parent, group, None, print, False, baselines)
    found = [validate(load_tokenizer(weights), step) for step in (1, 2)]
    assert group.is_main or found == [{}, {}]
    if group.is_main:
        open(out, "w").write(json.dumps(found))
sys.exit(worker.ended(0))
"""


@pytest.mark.parametrize("few", [False, True])
def test_two_processes_share_the_images(made, tmp_path, monkeypatch, command_server, few):
    """Of few held-out images, the first process has none."""
    tokenizer, weights, many = made
    folder = tiny.class_folder(tmp_path / "held-out", 20) if few else many
    training = tiny.class_folder(tmp_path / "training", 40)
    source, size = open_source([training]), PreprocessingConfig(size=tiny.SIZE)
    pixels = np.stack([preprocess(s.data, size) for s in source.read_many(range(len(source)))])
    axes, (numbers, held_out, _) = PrincipalAxes(pixels), expected(tokenizer, folder)
    numbers["val_psnr_pca"] = axes.psnr_of_numbers(held_out, tiny.TOKENS)
    numbers["val_psnr_gaussian"] = axes.psnr_of_bits(held_out, tiny.TOKENS * np.log2(tiny.CODES))
    monkeypatch.setenv("PYTHONPATH", str(Path(titokctl.__file__).resolve().parents[1]))
    (tmp_path / "worker.py").write_text(WORKER)
    words = [tmp_path / "worker.py", weights, folder, training, tmp_path / "found.json"]
    run_workers(list(map(str, words)), 2)
    one, two = json.loads((tmp_path / "found.json").read_text())
    assert one == two == pytest.approx(numbers, rel=1e-4)
