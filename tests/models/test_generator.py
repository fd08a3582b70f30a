"""MaskGit: what goes in, what comes out, what is refused."""

import sys

import pytest
import tiny
import torch

from titokctl.config.models import GeneratorConfig
from titokctl.errors import UserError
from titokctl.models.initialization import initialize
from titokctl.models.maskgit.generator import MaskGit

TOKENS, CODES, CLASSES = 8, 16, 3


def config(**changes) -> GeneratorConfig:
    fields = {
        "num_latent_tokens": TOKENS, "codebook_size": CODES, "num_classes": CLASSES, "width": 32, "num_layers": 2,
        "num_heads": 2, "mlp_width": 64,
    }  # fmt: skip
    return GeneratorConfig(**{**fields, **changes})


@pytest.fixture(params=["vit", "uvit"])
def generator(request) -> MaskGit:
    torch.manual_seed(0)
    model = MaskGit(config(architecture=request.param))
    return tiny.enlarged(model)


def masked(batch: int = 2) -> torch.Tensor:
    return torch.full((batch, TOKENS), CODES)


def test_logits_have_a_number_for_every_code_and_no_more(generator):
    logits = generator(masked(), torch.tensor([0, 2]))
    assert logits.shape == (2, TOKENS, CODES)
    assert logits.dtype == torch.float32


def test_no_labels_mean_the_null_label(generator):
    null = torch.full((2,), CLASSES)
    assert torch.equal(generator(masked()), generator(masked(), null))
    assert not torch.allclose(generator(masked()), generator(masked(), torch.tensor([0, 0])))


def test_every_position_sees_every_other(generator):
    ids = torch.zeros(1, TOKENS, dtype=torch.int64)
    changed = ids.clone()
    changed[0, -1] = CODES
    assert not torch.isclose(generator(ids)[0, 0], generator(changed)[0, 0]).all()


def test_ids_of_any_integer_type(generator):
    ids, labels = torch.arange(TOKENS)[None], torch.tensor([1])
    expected = generator(ids, labels)
    for dtype in (torch.int32, torch.uint8, torch.uint16):
        assert torch.equal(generator(ids.to(dtype), labels.to(dtype)), expected)


def test_an_empty_batch(generator):
    assert generator(masked(0)).shape == (0, TOKENS, CODES)
    assert generator(masked(0), torch.zeros(0, dtype=torch.int64)).shape == (0, TOKENS, CODES)


def test_logits_are_float32_in_a_bf16_network(generator):
    assert generator.to(torch.bfloat16)(masked(), torch.tensor([0, 1])).dtype == torch.float32


@pytest.mark.parametrize(
    ("ids", "labels", "message"),
    [
        (torch.full((2, TOKENS), CODES + 1), None, f"ids: expected values in 0..{CODES}, not {CODES + 1}"),
        (torch.full((2, TOKENS), -1), None, "ids: expected values"),
        (torch.zeros(2, TOKENS - 1, dtype=torch.int64), None, f"ids: expected integers of shape \\(B, {TOKENS}\\)"),
        (torch.zeros(2, TOKENS), None, "ids: expected a tensor of integers, got torch.float32"),
        (torch.zeros(2, TOKENS, dtype=torch.bool), None, "ids: expected a tensor of integers, got torch.bool"),
        (torch.zeros(2, TOKENS, dtype=torch.complex64), None, "ids: expected a tensor of integers, got torch.complex"),
        ([[0] * TOKENS], None, "ids: expected a tensor of integers, got list"),
        (masked().numpy(), None, "ids: expected a tensor of integers, got ndarray"),
        (masked(), [0, 1], "labels: expected a tensor of integers, got list"),
        (masked(), torch.tensor([True, False]), "labels: expected a tensor of integers, got torch.bool"),
        (masked(), torch.tensor([0, CLASSES + 1]), f"labels: expected values in 0..{CLASSES}"),
        (masked(), torch.tensor([0]), "labels: expected 2 integers"),
        (masked(), torch.tensor([0.0, 1.0]), "labels: expected a tensor of integers"),
    ],
)
def test_wrong_arguments(generator, ids, labels, message):
    with pytest.raises(ValueError, match=message):
        generator(ids, labels)


def test_dropout_only_while_training():
    model = MaskGit(config(architecture="vit", dropout=0.5, attention_dropout=0.5))
    initialize(model)
    model.train()
    assert not torch.equal(model(masked()), model(masked()))
    model.eval()
    assert torch.equal(model(masked()), model(masked()))


def test_a_generator_without_classes_has_only_the_null_label():
    model = MaskGit(config(num_classes=0)).eval()
    assert torch.equal(model(masked()), model(masked(), torch.zeros(2, dtype=torch.int64)))
    with pytest.raises(ValueError, match="labels"):
        model(masked(), torch.ones(2, dtype=torch.int64))


@pytest.mark.parametrize(("architecture", "k", "width", "layers", "mlp", "millions"),
                         [("vit", 32, 768, 24, 3072, 177.2), ("uvit", 128, 1024, 20, 4096, 295.0)])  # fmt: skip
def test_released_sizes(architecture, k, width, layers, mlp, millions):
    with torch.device("meta"):
        model = MaskGit(
            config(architecture=architecture, num_latent_tokens=k, codebook_size=4096, num_classes=1000, width=width,
                   num_layers=layers, num_heads=16, mlp_width=mlp)
        )  # fmt: skip
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)


def test_an_unknown_architecture_names_those_there_are():
    with pytest.raises(UserError, match="uvit, vit"):
        MaskGit(config(architecture="unet"))


def test_a_package_can_add_an_architecture(tmp_path, monkeypatch):
    (tmp_path / "plain_body.py").write_text(
        "from torch import nn\ndef build(config):\n    return nn.Embedding(config.vocabulary_size, config.width)\n"
    )
    information = tmp_path / "plain_body-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: plain-body\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text("[titokctl.generators]\nplain = plain_body:build\n")
    monkeypatch.syspath_prepend(tmp_path)
    try:
        model = MaskGit(config(architecture="plain")).eval()
    finally:
        sys.modules.pop("plain_body", None)
    assert model(masked()).shape == (2, TOKENS, CODES)
