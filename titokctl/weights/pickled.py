"""Old .bin files: pickles, read without ever running what is in them."""

import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from titokctl.errors import UserError


def read_pickled(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file that torch.save wrote.

    Only tensors and plain containers are accepted (torch's weights_only reader); anything else in the pickle is refused
    before it could act.

    Raises:
        UserError: truncated, holding code or objects, or no mapping from names to tensors.
    """
    try:
        with path.open("rb") as file:
            if file.read(2) not in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
                raise ValueError("its bytes are no pickle")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles of other programs, which are refused or read all the same
            # Memory-mapped where the format allows it: only zip archives can be.
            loaded: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} is refused: its pickle holds more than tensors, which could run code",
            "use the model.safetensors of the same model",
        ) from error
    # A damaged pickle can fail in any way: whatever it is, the file is at fault.
    except Exception as error:
        told = str(error).splitlines()[0] if str(error) else ""
        # "105" says nothing to anyone, and torch's advice to read a pickle in another way is not ours.
        reason = told if " " in told and "weights_only" not in told else "its bytes are no pickle"
        hint = "name a .safetensors or .bin file of weights; it may be truncated: fetch it again"
        raise UserError(f"{path} cannot be read as a file of weights ({reason})", hint) from error
    pairs = loaded.items() if isinstance(loaded, dict) else [(None, loaded)]
    if not all(isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in pairs):
        raise UserError(f"{path} holds no mapping from names to tensors, which a file of weights is")
    return dict(loaded)
