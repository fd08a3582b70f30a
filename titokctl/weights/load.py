"""Load networks from a run folder, a file, an official folder, or by a known name."""

from pathlib import Path
from typing import cast

import torch
from torch import nn

from titokctl.errors import UserError
from titokctl.models.generator import Generator
from titokctl.models.titok.tokenizer import TiTok
from titokctl.models.vqgan.vqgan import MaskGitVqgan
from titokctl.weights.known import named
from titokctl.weights.read import locate, read
from titokctl.weights.store import build

_WORDS = {"tokenizer": "a tokenizer", "generator": "a generator", "proxy": "a proxy tokenizer (MaskGIT-VQGAN)"}


def load_tokenizer(
    path_or_name: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None, fetch: bool = True
) -> TiTok:
    """Load a TiTok in eval mode.

    Args:
        path_or_name: a run's folder or name, RUN@STEP, a .safetensors file of ours, a checkpoint's folder, an official
            folder or file, or a known name such as "titok-l-32" (`weights.references` has all forms).
        device: the device of the network.
        dtype: the type of its weights; float32 when None.
        fetch: download a known name that is not on this machine.

    Raises:
        UserError: the file is missing, damaged, or holds another kind of network.
    """
    return cast(TiTok, _load(path_or_name, "tokenizer", device, dtype, fetch))


def load_generator(
    path_or_name: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None, fetch: bool = True
) -> Generator:
    """Load a generator of any kind in eval mode; arguments and errors as in `load_tokenizer`."""
    return cast(Generator, _load(path_or_name, "generator", device, dtype, fetch))


def load_proxy(
    path_or_name: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None, fetch: bool = True
) -> MaskGitVqgan:
    """Load a MaskGIT-VQGAN in eval mode; arguments and errors as in `load_tokenizer`."""
    return cast(MaskGitVqgan, _load(path_or_name, "proxy", device, dtype, fetch))


def _load(
    path_or_name: str | Path, kind: str, device: torch.device | str, dtype: torch.dtype | None, fetch: bool
) -> nn.Module:
    known = named(str(path_or_name), kind)
    if known and known.kind != kind and not Path(path_or_name).exists():
        raise _other_kind(known.name, "is", known.kind, kind)  # before anything is downloaded
    found = locate(path_or_name, fetch, kind)
    weights = read(found)
    if weights.kind != kind:
        raise _other_kind(str(found.path), "contains", weights.kind, kind)
    return build(weights, str(found.path), device, dtype)


def _other_kind(what: str, verb: str, found: str, expected: str) -> UserError:
    hint = f"name {_WORDS[expected]}; `titokctl weights ls` and `titokctl inspect FILE` show the kind"
    return UserError(f"{what} {verb} {_WORDS[found]}, but {_WORDS[expected]} is expected", hint)
