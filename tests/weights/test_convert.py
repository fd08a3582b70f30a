"""titokctl convert: official files in every form, to ours and back."""

import json
import os
import pickle
import tarfile
from pathlib import Path

import pytest
import torch
from networks import GENERATOR, tiny_generator, tiny_tokenizer
from safetensors.torch import load_file, save_file

from titokctl import load_generator, load_tokenizer
from titokctl.context import Context
from titokctl.errors import UserError
from titokctl.formats.weights_file import read_metadata
from titokctl.jobs.caches.convert import Convert, Converted, Layout
from titokctl.weights.hashes import weights_sha256
from titokctl.weights.known import BY_NAME
from titokctl.weights.official.config import write_config
from titokctl.weights.official.files import write_official
from titokctl.weights.official.layout import official_shapes
from titokctl.weights.official.recognise import recognise
from titokctl.weights.store import Weights, save_generator, save_tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A Hub-style folder: a generator, since these may have any size there."""
    module = tiny_generator()
    target = tmp_path / "official"
    extra = {"official_config": json.dumps({"model": {"generator": {"num_steps": 8}}, "experiment": {"name": "x"}})}
    write_official(target, Weights("generator", GENERATOR, dict(module.state_dict()), extra))
    return target


@pytest.fixture(scope="module")
def stage_one(tmp_path_factory) -> Path:
    """TiTok-S-128 as it is after stage 1, without a config.json; zeros in half precision, to be small."""
    shapes = official_shapes("tokenizer", BY_NAME["titok-s-128"].config)
    tensors = {n: torch.zeros(s, dtype=torch.float16) for n, s in shapes.items() if not n.startswith("pixel_")}
    path = tmp_path_factory.mktemp("stage1") / "s128.safetensors"
    save_file(tensors, path)
    return path


def convert(source: Path, to: Path, layout: Layout = "titokctl", model=None, overwrite=False) -> Converted:
    """Do the command's work without the cost of a process."""
    return Convert(str(source), to, model, layout, overwrite).run(Context())


def test_round_trip_of_a_folder(run_cli, folder, tmp_path):
    done = run_cli("convert", folder, "-o", "ours.safetensors", "--json", code=0).json
    assert (done["kind"], done["model"], done["layout"]) == ("generator", None, "titokctl")
    metadata = read_metadata(tmp_path / "ours.safetensors")
    assert metadata["source"] == "official"
    assert metadata["source_sha256"] == done["source_sha256"]
    assert weights_sha256(load_generator(tmp_path / "ours.safetensors")) == weights_sha256(tiny_generator())
    run_cli("convert", "ours.safetensors", "-o", "back", "--to", "official", code=0)
    assert (tmp_path / "back/model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert json.loads((tmp_path / "back/config.json").read_text()) == json.loads((folder / "config.json").read_text())


def test_official_files_load_as_they_are(folder):
    expected = weights_sha256(tiny_generator())
    assert weights_sha256(load_generator(folder)) == expected
    assert weights_sha256(load_generator(folder / "model.safetensors")) == expected
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    for new in (True, False):
        torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=new)
        assert weights_sha256(load_generator(folder)) == expected


def test_stage_one_file(stage_one, tmp_path):
    done = convert(stage_one, tmp_path / "ours.safetensors")
    assert not done.has_pixels
    tokenizer = load_tokenizer(tmp_path / "ours.safetensors")
    ids = torch.zeros(1, 128, dtype=torch.long)
    with torch.inference_mode():
        assert tokenizer.decode_proxy_logits(tokenizer.quantizer.vectors_of(ids)).shape == (1, 256, 1024)
    with pytest.raises(ValueError, match="stage 1 only"):
        tokenizer.detokenize(ids)
    convert(tmp_path / "ours.safetensors", tmp_path / "back", "official")
    back, there = load_file(tmp_path / "back/model.safetensors"), load_file(stage_one)
    assert back.keys() == there.keys()
    assert all(torch.equal(back[n], there[n]) and back[n].dtype == there[n].dtype for n in there)


def test_an_unrecognised_file_asks_for_its_name(folder, tmp_path):
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"can't recognise the model by config\.json") as caught:
        convert(folder, tmp_path / "ours.safetensors")
    assert "--model" in caught.value.hint
    assert "titok-ll-32-vae" in caught.value.hint
    with pytest.raises(UserError, match=r"missing model\.encoder\.layer\.2"):
        convert(folder, tmp_path / "ours.safetensors", model="maskgit-vit-l-32")


def test_no_official_form(tmp_path):
    save_tokenizer(tmp_path / "tiny.safetensors", tiny_tokenizer())
    with pytest.raises(UserError, match="can't be converted to the official form: its encoder is 24 wide"):
        convert(tmp_path / "tiny.safetensors", tmp_path / "out", "official")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tiny.safetensors"]


def test_existing_outputs(folder, tmp_path):
    ours, back, precious = tmp_path / "ours.safetensors", tmp_path / "back", tmp_path / "precious"
    ours.write_text("mine")
    with pytest.raises(UserError, match="exists already"):
        convert(folder, ours)
    with pytest.raises(UserError, match="is not a safetensors file"):
        convert(folder, ours, overwrite=True)
    assert ours.read_text() == "mine"
    ours.unlink()
    convert(folder, ours)
    convert(folder, ours, overwrite=True)
    precious.mkdir()
    (precious / "thesis.tex").write_text("...")
    with pytest.raises(UserError, match="was not made by titokctl"):
        convert(ours, precious, "official", overwrite=True)
    assert (precious / "thesis.tex").is_file()
    convert(ours, back, "official")
    convert(ours, back, "official", overwrite=True)
    with pytest.raises(UserError, match="is a file, but a folder would be written"):
        convert(folder, ours, "official", overwrite=True)
    with pytest.raises(UserError, match=r"does not end in \.safetensors"):
        convert(folder, tmp_path / "ours.pt")


class Harmful:
    """Creates a file when it is unpickled."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self):
        return os.mkdir, (str(self.witness),)


@pytest.mark.parametrize("how", ["torch", "torch, old", "plain"])
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path, how):
    witness, path = tmp_path / "witness", tmp_path / "model.bin"
    content = {"latent_tokens": torch.zeros(2), "harm": Harmful(witness)}
    if how == "plain":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "torch")
    with pytest.raises(UserError, match="is refused: its pickle contains more than tensors"):
        convert(path, tmp_path / "ours.safetensors")
    assert not witness.exists()
    with pytest.raises(UserError, match="refused"):
        load_tokenizer(path)
    assert not witness.exists()
    assert not (tmp_path / "ours.safetensors").exists()


@pytest.mark.parametrize("keep", [0, 5, 300, -50])
def test_truncated_pickles(tmp_path, keep):
    path = tmp_path / "model.bin"
    torch.save({"latent_tokens": torch.zeros(200)}, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"model\.bin (cannot be read|is refused)"):
        load_tokenizer(path)


def test_a_tar_is_reported_as_such(tmp_path):
    path = tmp_path / "shard.bin"
    with tarfile.open(path, "w") as tar:
        tar.addfile(tarfile.TarInfo("000000.jpg"))
    with pytest.raises(UserError, match="it is a tar file"):
        load_tokenizer(path)


def test_text_is_refused(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("kind: generator\nmodel:\n  width: 64\n")
    with pytest.raises(UserError, match=r"cannot be read as a file of weights \(it is not a pickle\)") as caught:
        load_tokenizer(path)
    assert caught.value.hint.startswith("name a .safetensors")


def test_a_pickle_without_names(tmp_path):
    torch.save([torch.zeros(2)], tmp_path / "model.bin")
    with pytest.raises(UserError, match="not a mapping from names to tensors"):
        load_tokenizer(tmp_path / "model.bin")


def test_a_damaged_config(folder):
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match="is not valid JSON"):
        load_generator(folder)
    (folder / "config.json").write_text("[]")
    with pytest.raises(UserError, match="is not a configuration"):
        load_generator(folder)


def change_config(folder: Path, change) -> None:
    content = json.loads((folder / "config.json").read_text())
    change(content)
    (folder / "config.json").write_text(json.dumps(content))


@pytest.mark.parametrize("hops", [1, 2])
def test_references_in_a_config_stand_for_their_values(folder, hops):
    def refer(content):
        content["model"]["generator"]["image_seq_len"] = "${model.vq_model.num_latent_tokens}"
        if hops == 2:
            content["model"]["vq_model"]["num_latent_tokens"] = "${dataset.tokens}"
            content["dataset"] = {"tokens": 4}

    change_config(folder, refer)
    assert weights_sha256(load_generator(folder)) == weights_sha256(tiny_generator())


@pytest.mark.parametrize("there", ["${model.no.such}", "${model.generator.image_seq_len}", "${oc.env:HOME}"])
def test_references_that_lead_nowhere(folder, there):
    change_config(folder, lambda content: content["model"]["generator"].update(image_seq_len=there))
    with pytest.raises(UserError, match=r"model\.generator\.image_seq_len: .*not '\$\{") as caught:
        load_generator(folder)
    assert "--model" in caught.value.hint


def test_an_old_config_that_says_too_little(tmp_path, folder):
    known = BY_NAME["maskgit-vit-l-32"].config
    shapes = official_shapes("generator", known)
    content = {"model": {"vq_model": {"codebook_size": 4096}, "generator": {"dropout": 0.1}}}
    assert recognise(shapes, content, None, "x") == ("generator", known)
    content["model"]["generator"]["hidden_size"] = "wide"
    with pytest.raises(UserError, match="hidden_size"):
        recognise(shapes, content, None, "x")
    change_config(folder, lambda content: content["model"]["generator"].pop("hidden_size"))
    with pytest.raises(UserError, match=r"hidden_size: Field required"):
        load_generator(folder)


@pytest.mark.parametrize(
    ("file", "dtypes"), [("model.safetensors", [torch.int64]), ("pytorch_model.bin", [torch.complex64, torch.int64])]
)
def test_tensors_of_integers_are_refused(folder, file, dtypes):
    tensors = load_file(folder / "model.safetensors")
    names = list(tensors)[: len(dtypes)]
    tensors |= {name: tensors[name].to(dtype) for name, dtype in zip(names, dtypes, strict=True)}
    (folder / "model.safetensors").unlink()
    (save_file if file.endswith(".safetensors") else torch.save)(tensors, folder / file)
    with pytest.raises(UserError, match="plain floating point tensors") as caught:
        load_generator(folder)
    assert all(f"{name} ({dtype})" in str(caught.value) for name, dtype in zip(names, dtypes, strict=True))


def test_many_wrong_tensors_are_not_all_listed(folder):
    tensors = {name: tensor.long() for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UserError, match=f"and {len(tensors) - 5} more"):
        load_generator(folder)


def test_a_sparse_tensor(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["model.lm_head.weight"] = tensors["model.lm_head.weight"].to_sparse()
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"lm_head\.weight \(torch\.float32, torch\.sparse_coo\)"):
        load_generator(folder)


def test_a_missing_tensor_that_tells_the_kind_is_named(folder):
    tensors = load_file(folder / "model.safetensors")
    save_file({n: t for n, t in tensors.items() if "lm_head.weight" not in n}, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"missing .*lm_head\.weight"):
        load_generator(folder)


def test_a_tokenizer_without_its_latent_tokens(tmp_path):
    known = BY_NAME["titok-s-128"].config
    shapes = {n: s for n, s in official_shapes("tokenizer", known).items() if n != "latent_tokens"}
    assert recognise(shapes, write_config("tokenizer", known), None, "x") == ("tokenizer", known)


def test_converting_ours_keeps_its_metadata(tmp_path):
    save_generator(tmp_path / "a.safetensors", tiny_generator(), {"inputs": '{"cache": "x"}'})
    convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert read_metadata(tmp_path / "b.safetensors")["inputs"] == '{"cache": "x"}'
