"""Pictures of any kind as the tensors of a tokenizer, and tensors as image files: `open_images` and `save_images`."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch

from titokctl.config.preprocessing import PreprocessingConfig
from titokctl.data.images import (
    BadImage,
    PilImage,
    crop_at,
    encode_jpeg,
    encode_png,
    encode_webp,
    pixels_of_picture,
    preprocess,
    to_bytes,
    to_float,
)
from titokctl.errors import UserError
from titokctl.formats.atomic import make_folder, write_bytes
from titokctl.formats.image_output import index_name
from titokctl.models.titok.tokenizer import TiTok

Picture: TypeAlias = str | os.PathLike[str] | PilImage | np.ndarray
_ENCODERS = {".png": encode_png, ".webp": encode_webp, ".jpg": encode_jpeg, ".jpeg": encode_jpeg}


def open_images(pictures: Picture | Sequence[Picture], tokenizer: TiTok, exif: bool = False) -> torch.Tensor:
    """Return pictures as the tokenizer takes them: (B, 3, S, S) float32 in [0, 1] on its device.

    The shorter edge of each is resized to S and the longer one cropped in the middle, as `titokctl tokenize` does, so
    the ids are those of a token cache of the same files made in float32.

    Args:
        pictures: a path, a `PIL.Image.Image`, or an array (H, W, 3) uint8, (H, W, 4) with alpha or (H, W) grey; or
            several of them, of any sizes. An array (B, H, W, 3) uint8 is B pictures.
        tokenizer: its image size is S.
        exif: apply the EXIF orientation of files.

    Raises:
        UserError: a file is missing or can't be decoded.
        ValueError: an array of another shape or type, or no picture at all.
    """
    if isinstance(pictures, str | os.PathLike | PilImage):
        pictures = [pictures]
    elif isinstance(pictures, np.ndarray):
        pictures = [pictures] if pictures.ndim < 4 else list(pictures)
    config = PreprocessingConfig(size=tokenizer.config.image_size, exif=exif)
    squares = [_square(picture, config) for picture in pictures]
    if not squares:
        raise ValueError("pictures: expected at least one, got none")
    return to_float(torch.from_numpy(np.stack(squares))).to(tokenizer.latent_tokens.device)


def save_images(images: torch.Tensor, paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[Path]:
    """Write images as files and return their paths; existing files are replaced, each atomically.

    Args:
        images: (B, 3, H, W) floating point, clipped to [0, 1], as `TiTok.detokenize` returns them.
        paths: a file for each image, whose ending says the format: .png, .webp (lossless) or .jpg; or one path. If that
            has no ending, it is a folder, made if it is missing, for 000000.png, 000001.png, ...

    Raises:
        UserError: a file can't be written.
        ValueError: another shape or type, another number of paths, or another ending.
    """
    pixels = to_bytes(images).cpu().numpy()
    if isinstance(paths, str | os.PathLike):
        one = Path(paths)
        is_folder = not one.suffix or one.is_dir()
        names = [one / f"{index_name(i, len(pixels))}.png" for i in range(len(pixels))] if is_folder else [one]
    else:
        names = [Path(path) for path in paths]
    if len(names) != len(pixels):
        raise ValueError(f"paths: expected {len(pixels)}, one for each image, got {len(names)}")
    unknown = [name for name in names if name.suffix.lower() not in _ENCODERS]
    if unknown:
        raise ValueError(f"paths: expected names that end in {', '.join(_ENCODERS)}, got {str(unknown[0])!r}")
    for name, image in zip(names, pixels, strict=True):
        make_folder(name.parent)
        write_bytes(name, _ENCODERS[name.suffix.lower()](image))
    return names


def _square(picture: Picture, config: PreprocessingConfig) -> np.ndarray:
    """Return one picture as (S, S, 3) uint8."""
    if isinstance(picture, PilImage | np.ndarray):
        return crop_at(pixels_of_picture(picture), config.size)
    try:
        return preprocess(Path(picture).read_bytes(), config)
    except BadImage as error:
        raise UserError(f"{picture} can't be read: {error.text}", "open it with another program") from error
    except OSError as error:
        raise UserError(f"cannot read {picture}: {error.strerror}", "check the path") from error
