"""Old .bin files: pickles, read without executing anything in them."""

import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from titokctl.errors import UserError
from titokctl.formats.file_kind import head_of, mistaken


def read_pickled(path: Path) -> dict[str, torch.Tensor]:
    """Read the tensors of a file that torch.save wrote.

    Only tensors and plain containers are accepted (torch's weights_only reader); anything else in the pickle is refused
    before it could run.

    Raises:
        UserError: it is truncated, has code or objects in it, or isn't a mapping from names to tensors.
    """
    try:
        with path.open("rb") as file:
            if file.read(2) not in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
                raise ValueError("it is not a pickle")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles of other programs
            # Memory-mapped where the format allows it: only zip archives can be.
            loaded: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} is refused: its pickle contains more than tensors and could run code",
            "use the model.safetensors of the same model",
        ) from error
    # A damaged pickle can fail in any way; the cause is always the file.
    except Exception as error:
        line = str(error).splitlines()[0] if str(error) else ""
        # Some messages are only a number, others recommend weights_only=False.
        reason = line if " " in line and "weights_only" not in line else "it is not a pickle"
        hint = "name a .safetensors or .bin file of weights; if it is one, it may be truncated: download it again"
        if other := mistaken(head_of(path), "zip"):
            reason, hint = f"it is {other.words}", other.hint or hint
        raise UserError(f"{path} cannot be read as a file of weights ({reason})", hint) from error
    pairs = loaded.items() if isinstance(loaded, dict) else [(None, loaded)]
    if not all(isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in pairs):
        raise UserError(f"{path} is not a mapping from names to tensors, as a file of weights is")
    return dict(loaded)
