"""Networks leave through torch.export and ONNX: the exported program gives the same for batches of any size."""

import importlib.util

import pytest
import torch
import trained

from titokctl.models.titok.exportable import IdsToImages, ImagesToIds
from titokctl.weights.load import load_generator, load_tokenizer

BATCH = torch.export.Dim("batch")
COUNT = 5  # the examples have 2 images


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """Modules by name, each with inputs for `COUNT` images."""
    runs = trained.both(tmp_path_factory.mktemp("export"))
    tokenizer, generator = load_tokenizer(runs / "tokenizer" / "tok"), load_generator(runs / "generator" / "gen")
    images = torch.rand(COUNT, 3, trained.SIZE, trained.SIZE, generator=torch.Generator().manual_seed(0))
    ids = torch.arange(COUNT * trained.TOKENS).view(COUNT, -1) % trained.CODES
    return {
        "tokenize": (ImagesToIds(tokenizer), (images,), tokenizer.tokenize(images)),
        "detokenize": (IdsToImages(tokenizer), (ids,), tokenizer.detokenize(ids)),
        "generator": (generator, (ids, torch.arange(COUNT) % 3), None),
    }


def exported(module, inputs):
    examples = tuple(tensor[:2] for tensor in inputs)
    with torch.no_grad():
        return torch.export.export(module, examples, dynamic_shapes=tuple({0: BATCH} for _ in inputs))


@pytest.mark.parametrize("name", ["tokenize", "detokenize", "generator"])
def test_an_exported_program_gives_the_same_for_another_batch(networks, name):
    module, inputs, expected = networks[name]
    with torch.no_grad():
        found = exported(module, inputs).module()(*inputs)
        expected = module(*inputs) if expected is None else expected
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # of torch.onnx itself
@pytest.mark.parametrize("name", ["tokenize", "detokenize", "generator"])
def test_an_onnx_file_gives_the_same_in_another_runtime(networks, name, tmp_path):
    if not all(map(importlib.util.find_spec, ("onnx", "onnxscript", "onnxruntime"))):
        pytest.skip("the extra onnx is not installed")
    import onnxruntime

    module, inputs, expected = networks[name]
    torch.onnx.export(exported(module, inputs), dynamo=True, verbose=False).save(tmp_path / "net.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    given = {slot.name: tensor.numpy() for slot, tensor in zip(session.get_inputs(), inputs, strict=True)}
    (found,) = session.run(None, given)
    with torch.no_grad():
        expected = module(*inputs) if expected is None else expected
    torch.testing.assert_close(torch.from_numpy(found), expected.clone(), atol=1e-4, rtol=1e-4)
