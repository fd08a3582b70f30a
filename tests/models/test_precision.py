"""The switches of float32 arithmetic: what a block sets, and that it leaves them as they were."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from titokctl.models.precision import PRECISIONS, precision

BACKENDS: Any = torch.backends


def legacy_products(allowed: bool) -> None:
    BACKENDS.cuda.matmul.allow_tf32 = allowed


def legacy_convolutions(allowed: bool) -> None:
    BACKENDS.cudnn.allow_tf32 = allowed


def new(*path: str) -> Callable[[str], None]:
    """A function that sets `fp32_precision` of a backend."""

    def set_to(value: str) -> None:
        switch = BACKENDS
        for name in path:
            switch = getattr(switch, name)
        switch.fp32_precision = value

    return set_to


OLD_WAYS: list[list[tuple[Callable[[Any], None], Any]]] = [
    [],
    [(torch.set_float32_matmul_precision, "medium")],
    [(torch.set_float32_matmul_precision, "high"), (legacy_products, False)],
    [(legacy_products, True), (legacy_convolutions, False)],
]
NEW_WAYS: list[list[tuple[Callable[[Any], None], Any]]] = [
    [(new(), "tf32")],
    [(new(), "ieee")],
    [(new("cuda", "matmul"), "tf32")],
    [(new("cudnn", "conv"), "ieee")],
    [(new("cuda", "matmul"), "tf32"), (new("cudnn", "conv"), "ieee"), (new("cudnn", "rnn"), "tf32")],
    [(new("mkldnn", "matmul"), "bf16")],
    [(legacy_convolutions, False), (new(), "tf32")],
]


def told(read: Callable[[], Any]) -> Any:
    """The value of a switch, or "refused" where torch says that old and new switches disagree."""
    try:
        return read()
    except RuntimeError:
        return "refused"


def state() -> list[Any]:
    """All switches that a program can read."""
    found = [
        told(lambda: BACKENDS.cuda.matmul.allow_tf32),
        told(lambda: BACKENDS.cudnn.allow_tf32),
        told(torch.get_float32_matmul_precision),
    ]
    cudnn, mkldnn = BACKENDS.cudnn, BACKENDS.mkldnn
    switches = [BACKENDS, BACKENDS.cuda.matmul, cudnn, cudnn.conv, cudnn.rnn, mkldnn.matmul, mkldnn.conv]
    return found + [switch.fp32_precision for switch in switches]


@pytest.fixture(autouse=True)
def restored():
    """Leave the switches of other tests alone."""
    before = state()
    with precision("float32", "cpu"):
        yield
    new()("none")
    torch.set_float32_matmul_precision(before[2])
    BACKENDS.cudnn.allow_tf32 = before[1]
    paths = [("cuda", "matmul"), ("cudnn", "conv"), ("cudnn", "rnn"), ("mkldnn", "matmul"), ("mkldnn", "conv")]
    for path, value in zip(paths, (before[4], *before[6:]), strict=True):
        new(*path)(value)
    assert state() == before


@pytest.mark.filterwarnings("ignore:.*CUDA is not available", "ignore:.*device_type of .cuda.")
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("way", OLD_WAYS + NEW_WAYS)
def test_switches_are_as_before_whatever_api_the_program_used(way, device) -> None:
    for set_to, value in way:
        set_to(value)
    before = state()
    for name in PRECISIONS:
        with precision(name, device):
            inside = state()
            # TF32 only where it was asked for: what stays float32 under a 16-bit precision is exact.
            assert inside[:2] == [name == "tf32" and device == "cuda"] * 2
            assert inside[2] != "refused"  # torch.compile reads it
            assert {"tf32" if name == "tf32" and device == "cuda" else "ieee"} == set(inside[4:5] + inside[6:])
            with precision("float32", device):
                pass
            assert state() == inside
        assert state() == before


def test_an_error_leaves_the_switches_as_before() -> None:
    before = state()
    with pytest.raises(KeyError), precision("tf32", "cuda"):
        raise KeyError
    assert state() == before
