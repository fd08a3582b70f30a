"""Our weights files: what survives, and what is refused."""

import json
import struct
from pathlib import Path

import pytest
import torch
from networks import TOKENIZER, tiny_generator, tiny_tokenizer
from safetensors.torch import load_file, save_file

from titokctl import load_generator, load_tokenizer
from titokctl.errors import UserError
from titokctl.formats import weights_file
from titokctl.formats.run_folder import RunFolder
from titokctl.weights.hashes import encoder_sha256, weights_sha256
from titokctl.weights.store import read_own, save_generator, save_tokenizer


@pytest.fixture
def path(tmp_path: Path) -> Path:
    target = tmp_path / "tokenizer.safetensors"
    save_tokenizer(target, tiny_tokenizer(), {"inputs": '{"cache": "tokens.h5"}'})
    return target


def header(path: Path) -> dict:
    data = path.read_bytes()
    return json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])


def with_metadata(path: Path, **changes: str) -> None:
    """Write the file again with other metadata and the same tensors."""
    metadata = header(path)["__metadata__"] | changes
    weights_file.write_tensors(path, {n: t.clone() for n, t in load_file(path).items()}, metadata)


def resave(path: Path, change) -> None:
    """Write the file again with changed tensors and a checksum that fits them: another program's bug, not damage."""
    weights = read_own(path)
    tensors = {name: tensor.clone() for name, tensor in weights.tensors.items()}
    change(tensors)
    weights_file.write(path, weights.kind, weights.config.model_dump_json(), tensors, {})


def test_there_and_back(path):
    original, loaded = tiny_tokenizer(), load_tokenizer(path)
    assert loaded.config == TOKENIZER
    assert not loaded.training
    assert weights_sha256(loaded) == weights_sha256(original)
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(loaded.latents(images), original.latents(images))
    assert weights_file.read_metadata(path)["inputs"] == '{"cache": "tokens.h5"}'
    assert read_own(path).extra == {"inputs": '{"cache": "tokens.h5"}'}


def test_generator_there_and_back(tmp_path):
    save_generator(tmp_path / "g.safetensors", tiny_generator(), {"inputs": "{}"})
    loaded = load_generator(tmp_path / "g.safetensors")
    ids = torch.randint(10, (2, 4))
    assert torch.equal(loaded(ids, None), tiny_generator()(ids, None))


def test_from_a_run_folder(tmp_path, path):
    run = RunFolder(tmp_path / "run", "tokenizer")
    run.save()
    with pytest.raises(UserError, match="is not finished"):
        load_tokenizer(run.path)
    path.rename(run.path / "tokenizer.safetensors")
    run.finish("tokenizer.safetensors", {})
    assert load_tokenizer(str(run.path)).config == TOKENIZER


def test_equal_weights_give_equal_files(path, tmp_path):
    save_tokenizer(tmp_path / "again.safetensors", tiny_tokenizer(), {"inputs": '{"cache": "tokens.h5"}'})
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


def test_large_tensors_are_aligned(path):
    data = path.read_bytes()
    start = 8 + struct.unpack("<Q", data[:8])[0]
    offsets = [v["data_offsets"] for n, v in header(path).items() if n != "__metadata__"]
    assert start % 64 == 0
    assert all(begin % 64 == 0 for begin, end in offsets if (end - begin) % 64 == 0)


def test_other_readers_read_it(path):
    assert load_file(path).keys() == tiny_tokenizer().state_dict().keys()


def test_writing_into_loaded_weights_leaves_the_file_alone(path):
    before = path.read_bytes()
    with torch.no_grad():
        for parameter in load_tokenizer(path).parameters():
            parameter.add_(1)
    assert path.read_bytes() == before


def test_dtype_of_choice(path):
    tokenizer = load_tokenizer(path, dtype=torch.bfloat16)
    assert {p.dtype for p in tokenizer.parameters()} == {torch.bfloat16}
    images = torch.rand(1, 3, 16, 16)
    assert tokenizer.latents(images).dtype == torch.float32
    assert tokenizer.detokenize(tokenizer.tokenize(images)).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool])
def test_every_dtype_survives(tmp_path, dtype):
    tensors = {
        "a": torch.arange(9000).to(dtype),
        "none": torch.empty(0, 3, dtype=dtype),
        "one": torch.ones((), dtype=dtype),
    }
    weights_file.write(tmp_path / "w.safetensors", "tokenizer", "{}", tensors, {})
    read = weights_file.read_tensors(tmp_path / "w.safetensors")
    assert all(
        torch.equal(read[n], t) and read[n].dtype == dtype and read[n].shape == t.shape for n, t in tensors.items()
    )


@pytest.mark.parametrize("keep", [4, 100, -1])
def test_truncated(path, keep):
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"tokenizer\.safetensors is not a complete safetensors file"):
        load_tokenizer(path)


@pytest.mark.parametrize("place", [0.3, 0.6, 0.999])
def test_edited(path, place):
    data = bytearray(path.read_bytes())
    start = 8 + struct.unpack("<Q", data[:8])[0]
    data[start + int((len(data) - start) * place)] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="damaged or was edited"):
        load_tokenizer(path)


@pytest.mark.parametrize(("old", "new"), [(rb"\"num_heads\":2", rb"\"num_heads\":4"), (b"tokens.h5", b"others.h5")])
def test_edited_metadata(path, old, new):
    """No shape shows the number of heads."""
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new))
    with pytest.raises(UserError, match="damaged or was edited: its metadata does not"):
        load_tokenizer(path)


def test_files_without_a_checksum_of_their_metadata(path):
    metadata = header(path)["__metadata__"]
    del metadata["metadata_sha256"]
    save_file(load_file(path), path, metadata)
    assert load_tokenizer(path).config == TOKENIZER


def test_exchanged_tensors(path):
    """Two tensors of one shape that changed places keep all their bytes, but not the checksum."""
    tensors = {n: t.clone() for n, t in load_file(path).items()}
    a, b = "encoder.blocks.0.mlp.up.weight", "encoder.blocks.1.mlp.up.weight"
    tensors[a], tensors[b] = tensors[b], tensors[a]
    save_file(tensors, path, header(path)["__metadata__"])
    with pytest.raises(UserError, match="damaged or was edited"):
        load_tokenizer(path)


def test_newer_format(path):
    with_metadata(path, format_version="2")
    with pytest.raises(UserError, match=r"written by a newer titokctl \(weights format 2\)"):
        load_tokenizer(path)


def test_unusable_configuration(path):
    with_metadata(path, config='{"image_size": 16}')
    with pytest.raises(UserError, match="unusable tokenizer configuration"):
        load_tokenizer(path)


def test_missing_unexpected_and_wrong_tensors_are_named(path):
    def change(tensors):
        del tensors["latent_tokens"]
        tensors["stranger"] = torch.zeros(2)
        tensors["encoder.norm_in.bias"] = torch.zeros(7)

    resave(path, change)
    with pytest.raises(UserError) as caught:
        load_tokenizer(path)
    assert "3 tensors do not fit" in caught.value.message
    for words in (
        "missing latent_tokens",
        "unexpected stranger",
        "encoder.norm_in.bias has shape (7,) instead of (24,)",
    ):
        assert words in caught.value.message


def test_only_the_first_five_are_listed(path):
    resave(path, lambda tensors: [tensors.pop(n) for n in list(tensors) if n.startswith("encoder.blocks.0.")])
    with pytest.raises(UserError) as caught:
        load_tokenizer(path)
    assert caught.value.message.count("missing ") == 5
    assert "and 7 more" in caught.value.message


def test_another_kind(path, tmp_path):
    save_generator(tmp_path / "g.safetensors", tiny_generator())
    with pytest.raises(UserError, match="contains a generator, but a tokenizer is expected"):
        load_tokenizer(tmp_path / "g.safetensors")
    with pytest.raises(UserError, match="contains a tokenizer, but a generator is expected"):
        load_generator(path)
    with pytest.raises(UserError, match="maskgit-vit-l-32 is a generator, but a tokenizer is expected"):
        load_tokenizer("maskgit-vit-l-32")


def test_nothing_there(tmp_path):
    with pytest.raises(UserError, match="no weights found: titok-l32") as caught:
        load_tokenizer("titok-l32")
    assert "did you mean titok-l-32" in caught.value.hint
    with pytest.raises(UserError, match="no weights in"):
        load_tokenizer(tmp_path)


def test_specified_metadata_cannot_be_replaced(tmp_path):
    with pytest.raises(ValueError, match="checksum"):
        save_tokenizer(tmp_path / "t.safetensors", tiny_tokenizer(), {"checksum": "x"})


def test_encoder_hash_covers_what_decides_ids():
    """The decoder may change; the encoder, the codebook, and settings that no shape shows may not."""
    tokenizer = tiny_tokenizer()
    encoder, everything = encoder_sha256(tokenizer), weights_sha256(tokenizer)
    with torch.no_grad():
        tokenizer.decoder.mask_token += 1
    assert encoder_sha256(tokenizer) == encoder
    assert weights_sha256(tokenizer) != everything
    with torch.no_grad():
        tokenizer.quantizer.codebook[0] += 1
    assert encoder_sha256(tokenizer) != encoder
    plain = tiny_tokenizer()
    plain.config = TOKENIZER.model_copy(update={"normalize_codes": False})
    assert encoder_sha256(plain) != encoder
