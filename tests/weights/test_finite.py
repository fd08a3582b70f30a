"""Weights with numbers that are infinite or no numbers are refused by everything that loads them."""

from pathlib import Path

import pytest
import torch
import trained

from titokctl.cli.app import run
from titokctl.errors import UserError
from titokctl.formats import checkpoint
from titokctl.formats.atomic import read_json, write_json
from titokctl.models.efficientnet_lite import LITE0, EfficientNetLite
from titokctl.weights.feature_networks import filled
from titokctl.weights.load import load_generator, load_tokenizer
from titokctl.weights.store import save_generator, save_tokenizer


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("kind", ["tokenizer", "generator"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_value_that_is_not_finite_is_named(tmp_path: Path, value: float, kind: str, dtype: torch.dtype) -> None:
    load, save = {"tokenizer": (load_tokenizer, save_tokenizer), "generator": (load_generator, save_generator)}[kind]
    runs = trained.both(tmp_path / "runs")
    path = next((runs / kind).glob("*/weights.safetensors"))
    network = load(path).to(dtype)
    name, weight = list(network.named_parameters())[-1]
    with torch.no_grad():
        weight.view(-1)[-1] = value
    save(path, network)
    with pytest.raises(UserError, match=f"1 of the .* numbers of {name} are infinite or not a number"):
        load(path)
    assert run(["sample", "-n", "2", "--runs-dir", str(runs), "-o", str(tmp_path / "out")]) == 1
    assert run(["convert", str(path), "-o", str(tmp_path / "out.safetensors")]) == 1
    assert not list(tmp_path.glob("out*"))


def test_a_feature_network_is_checked_too() -> None:
    tensors = EfficientNetLite(LITE0).state_dict()
    tensors["stem.weight"][0, 0, 0, 0] = float("nan")
    with pytest.raises(UserError, match=r"stem\.weight"):
        filled(EfficientNetLite(LITE0), tensors, "EfficientNet-Lite0")


@pytest.mark.parametrize("change", [{"step": 3}, {"step": "2"}, {"step": None}])
def test_the_step_of_a_checkpoint_is_checked(tmp_path: Path, change: dict) -> None:
    for step in (1, 2):
        state = checkpoint.Checkpoint(step, {"a": torch.ones(3)}, {"step": step})
        checkpoint.save(tmp_path, state, checkpoint.Policy(keep=2))
    path = tmp_path / "step-00000002" / "state.json"
    write_json(path, read_json(path) | change)
    said: list[str] = []
    found = checkpoint.load_newest(tmp_path, said.append)
    assert found is not None
    assert found.step == 1
    assert "state.json is damaged" in said[0]
