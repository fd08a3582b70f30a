"""Training that starts from other weights: what is taken is reported, recorded, and where training begins."""

import hub_server
import pytest
import tiny
import torch
from caches import write_cache
from safetensors.torch import load_file
from stages import Leave, train, write_recipe

from titokctl.config import recipe_files
from titokctl.context import Context
from titokctl.errors import UserError
from titokctl.formats.run_folder import open_run
from titokctl.jobs.train.generator import TrainGenerator
from titokctl.models.initialization import initialize
from titokctl.models.maskgit.generator import MaskGit
from titokctl.weights.known import BY_NAME
from titokctl.weights.load import load_tokenizer
from titokctl.weights.official.files import write_official
from titokctl.weights.store import Weights

STILL = ("optimizer.learning_rate=1e-12", "training.steps=2", "adversary=null")
OWN_CODES = "codebook.continuous_steps=0"


@pytest.fixture
def pictures(tmp_path):
    return tiny.class_folder(tmp_path / "pictures", per_class=6)


def test_a_tokenizer_goes_on_from_weights_of_another_image_size(pictures, tmp_path):
    start = train(pictures, "single", tmp_path / "runs", tmp_path, "training.steps=4", name="start")
    talk = Leave()
    changes = (*STILL, OWN_CODES, "codebook.reseed_decay=null", "model.image_size=64", "init=start")
    tuned = train(pictures, "single", tmp_path / "runs", tmp_path, *changes, name="tuned", progress=talk)
    said = next(line for line in talk.said if line.startswith("init: "))
    assert "resized: encoder.positional_embedding, decoder.positional_embedding" in said
    recorded = open_run(tuned.run).inputs["init"]
    assert recorded["weights_sha256"] == start.weights_sha256
    assert recorded["left"] == []
    before, after = load_file(start.weights), load_file(tuned.weights)
    torch.testing.assert_close(after["encoder.blocks.0.mlp.up.weight"], before["encoder.blocks.0.mlp.up.weight"])
    assert after["encoder.positional_embedding"].shape == (65, 32)


def test_frozen_parts_stay_and_codes_that_are_frozen_are_not_reseeded(pictures, tmp_path):
    start = train(pictures, "single", tmp_path / "runs", tmp_path, "training.steps=4", name="start")
    frozen = "training.freeze=[encoder, latent_tokens, quantizer]"
    changes = ("init=start", frozen, "training.steps=6", "schedule.warmup_steps=0")
    tuned = train(pictures, "single", tmp_path / "runs", tmp_path, *changes, name="tuned")
    assert tuned.encoder_sha256 == start.encoder_sha256
    assert tuned.weights_sha256 != start.weights_sha256
    with pytest.raises(UserError, match="no part 'enc'"):
        train(pictures, "single", tmp_path / "runs", tmp_path, "training.freeze=[enc]", name="wrong")


def test_a_resized_codebook_is_reported_with_the_generators_on_its_ids(pictures, tmp_path, recipe):
    runs, talk = tmp_path / "runs", Leave()
    start = train(pictures, "single", runs, tmp_path, "training.steps=4", name="start")
    cache = write_cache(tmp_path / "ids.h5", 40, encoder_sha256=start.encoder_sha256)
    TrainGenerator(cache, str(recipe), ("training.steps=1",), name="on-its-ids").run(Context(runs))
    changes = (*STILL, OWN_CODES, "codebook.reseed_decay=null", "model.codebook_size=48", "init=start")
    tuned = train(pictures, "single", runs, tmp_path, *changes, name="tuned", progress=talk)
    said = next(line for line in talk.said if line.startswith("warning: the codebook"))
    assert "resized from 32 to 48 codes" in said
    assert f"train {runs / 'generator' / 'on-its-ids'} again" in said
    assert open_run(tuned.run).inputs["init"]["resized"] == ["quantizer.codebook"]


@pytest.mark.parametrize("stage", ["vqgan", "proxy"])
def test_the_other_stages_take_weights_too(pictures, tmp_path, stage):
    runs = tmp_path / "runs"
    vqgan = train(pictures, "vqgan", runs, tmp_path, "training.steps=2", name="v")
    first = vqgan if stage == "vqgan" else train(pictures, "proxy", runs, tmp_path, "training.steps=2", name="p")
    still = STILL[:2] if stage == "proxy" else STILL
    more = (*still, OWN_CODES, "codebook.reseed_decay=null", f"init={first.run}")
    tuned = train(pictures, stage, runs, tmp_path, *more, name="tuned")
    before, after = load_file(first.weights), load_file(tuned.weights)
    assert all(torch.allclose(before[name], after[name], atol=1e-5) for name in before)
    tiny.tokenizer(tmp_path / "t.safetensors")
    wrong = vqgan.run if stage == "proxy" else tmp_path / "t.safetensors"
    with pytest.raises(UserError, match=r"contains a (proxy )?tokenizer"):
        train(pictures, stage, runs, tmp_path, f"init={wrong}", name="wrong")


def test_a_generator_goes_on_with_its_classes_by_name(tmp_path, recipe, runs):
    def go(cache, *overrides, **options):
        request = TrainGenerator(cache, str(recipe), ("training.ema_decay=0", *overrides), **options)
        talk = Leave()
        return request.run(Context(runs, progress=talk)), talk

    cache = write_cache(tmp_path / "a.h5", 200)
    first, _ = go(cache, "training.steps=3", name="first")
    tuned, talk = go(cache, "training.steps=1", "optimizer.learning_rate=1e-12", name="tuned", init="first")
    before, after = load_file(first.weights), load_file(tuned.weights)
    assert all(torch.allclose(before[name], after[name], atol=1e-5) for name in before)
    assert any(line.startswith(f"init: {first.run}: ") for line in talk.said)
    assert open_run(tuned.run).inputs["init"]["weights_sha256"] == first.weights_sha256
    assert tuned.run != first.run
    tiny.tokenizer(tmp_path / "t.safetensors")
    with pytest.raises(UserError, match="a tokenizer, but a generator is expected"):
        go(cache, name="wrong", init=str(tmp_path / "t.safetensors"))


def test_a_checkpoint_is_a_start(pictures, tmp_path):
    start = train(
        pictures, "single", tmp_path / "runs", tmp_path, "training.steps=6", "training.checkpoint_every=2", name="s"
    )
    changes = (*STILL, OWN_CODES, "codebook.reseed_decay=null", "init=s@4:raw")
    tuned = train(pictures, "single", tmp_path / "runs", tmp_path, *changes, name="tuned")
    before, after = load_tokenizer(f"{start.run}@4:raw").state_dict(), load_file(tuned.weights)
    assert all(torch.allclose(before[name], after[name], atol=1e-5) for name in before)


def test_released_names_are_fetched_and_taken(pictures, tmp_path, run_cli, recipe):
    """The two commands of docs/fine-tuning.md, with small stand-ins on a server that plays the Hub."""
    pytest.importorskip("huggingface_hub")
    hub = tmp_path / "hub"
    folder = hub / BY_NAME["titok-bl-64-vq"].repository
    folder.mkdir(parents=True)
    changes = {"codebook_size": 32, "layers": 1}
    tiny.tokenizer(folder / "model.safetensors", **changes)
    (folder / "config.json").write_text("{}")
    torch.manual_seed(0)
    model = recipe_files.load(str(recipe), "generator").model
    generator = MaskGit(model)
    initialize(generator)
    write_official(hub / BY_NAME["maskgit-vit-l-32"].repository, Weights("generator", model, generator.state_dict()))
    cache = write_cache(tmp_path / "own.h5", 200)
    caches = {"HF_HOME": str(tmp_path / "hf"), "TITOKCTL_WEIGHTS": str(tmp_path / "weights")}
    quick = ("--set", "training.steps=2", "--json")
    with hub_server.serve(hub) as (address, _):
        online = hub_server.online(address) | caches
        single = write_recipe(tmp_path, "single")
        tuned = run_cli(
            "train-tokenizer", pictures, "--recipe", single, "--init", "titok-bl-64-vq", *quick, env=online, code=0
        )
        made = run_cli("train-gen", cache, "--recipe", recipe, "--init", "maskgit-vit-l-32", *quick, env=online, code=0)
    for done, name in ((tuned, "titok-bl-64-vq"), (made, "maskgit-vit-l-32")):
        recorded = open_run(tmp_path / done.json["run"]).inputs["init"]
        assert recorded["from"] == name
        assert recorded["left"] == []
        assert f"init: {name}: " in done.stderr
