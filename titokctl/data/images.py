"""Everything that decides about pixels: decoding, colours, resizing, cropping, range and rounding.

Image files are untrusted: their format is told by their first bytes, only JPEG, PNG and WebP decoders are ever called,
and the declared size is checked before a pixel is decoded. What Pillow leaves to a version (16-bit grey, CMYK, alpha)
is computed here.
"""

import io
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import ExifTags, Image, ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from titokctl.config.preprocessing import DEFAULT_MAX_PIXELS, PreprocessingConfig
from titokctl.data.resize import resize
from titokctl.formats.shard_scan import MAX_IMAGE_BYTES

if TYPE_CHECKING:
    import torch

EXTENSIONS = ("jpg", "jpeg", "png", "webp")
_FILES: dict[str, type[ImageFile.ImageFile]] = {"jpg": JpegImageFile, "png": PngImageFile, "webp": WebPImageFile}
_TOO_SHORT = (EOFError, struct.error)
_TURN = Image.Transpose
_TURNS = {
    2: _TURN.FLIP_LEFT_RIGHT, 3: _TURN.ROTATE_180, 4: _TURN.FLIP_TOP_BOTTOM, 5: _TURN.TRANSPOSE,
    6: _TURN.ROTATE_270, 7: _TURN.TRANSVERSE, 8: _TURN.ROTATE_90,
}  # fmt: skip


class BadImage(Exception):
    """An image file that gives no picture.

    Args:
        kind: a stable short word: empty, format, too-large, truncated, unreadable, mode.
        text: what was found, for a person.
    """

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind
        self.text = text


def decode(
    data: bytes, max_pixels: int = DEFAULT_MAX_PIXELS, exif: bool = False, at_least: int | None = None
) -> np.ndarray:
    """An image file as (H, W, 3) uint8 RGB.

    Alpha is composited on white, CMYK and palettes become RGB, grey is repeated, 16 bits keep their upper 8; of an
    animation the first frame counts. `exif` applies the EXIF orientation. With `at_least`, a JPEG may come at a half,
    quarter or eighth of its size, no edge shorter than that.

    Raises:
        BadImage: the bytes are no whole JPEG, PNG or WebP, or declare more than `max_pixels` pixels.
    """
    if len(data) > MAX_IMAGE_BYTES:
        raise BadImage("too-large", f"more than {MAX_IMAGE_BYTES >> 20} MiB")
    try:
        # The classes themselves, not Image.open: no other plug-in is asked, and the only limit on pixels is ours.
        image = _FILES[extension_of(data)](io.BytesIO(data))
        if image.width * image.height > max_pixels:
            raise BadImage("too-large", f"{image.width} x {image.height} pixels, more than {max_pixels:,}")
        if at_least is not None:
            image.draft(image.mode, (at_least, at_least))
        image.load()
        turned = _upright(image) if exif else image
        return _to_rgb(turned)
    except (BadImage, MemoryError):
        raise
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error, ... on broken files
        text = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, _TOO_SHORT) or isinstance(error.__cause__, _TOO_SHORT):
            raise BadImage("truncated", "the file ends too early") from error
        raise BadImage("truncated" if "truncated" in text.lower() else "unreadable", text) from error


def preprocess(data: bytes, config: PreprocessingConfig) -> np.ndarray:
    """An image file as the (S, S, 3) uint8 square of `config`. Raises BadImage as `decode` does."""
    return square(decode_for(data, [config]), config)


def decode_for(data: bytes, configs: Sequence[PreprocessingConfig]) -> np.ndarray:
    """An image file as (H, W, 3) uint8, from which `square` makes each of `configs`; decoded as the first one says."""
    at_least = max(config.size for config in configs) if configs[0].fast_decode else None
    return decode(data, configs[0].max_pixels, configs[0].exif, at_least)


def square(pixels: np.ndarray, config: PreprocessingConfig) -> np.ndarray:
    """(H, W, 3) uint8 -> the (S, S, 3) uint8 square of `config`."""
    return (adm_crop if config.crop == "adm" else crop_at)(pixels, config.size)


def shorter_edge_to(pixels: np.ndarray, size: int) -> np.ndarray:
    """(H, W, 3) -> (h, w, 3) uint8 with min(h, w) = `size`: what `crop_at` cuts from, uncut."""
    return resize(pixels, scaled_size(pixels.shape[0], pixels.shape[1], size))


def crop_at(pixels: np.ndarray, size: int, u: float | None = None) -> np.ndarray:
    """(H, W, 3) -> (S, S, 3) uint8: shorter edge to `size` by bicubic with antialias, a window of the longer one.

    The window lies in the middle, or at the fraction `u` in [0, 1) of its places. Sizes and offsets are those of the
    usual ImageNet transform: longer edge int(S l / s), offset int(round((l - S) / 2)) with Python's rounding to even.
    Of a result of `shorter_edge_to` it gives the same as of the original.
    """
    height, width = scaled_size(pixels.shape[0], pixels.shape[1], size)
    free = height - size, width - size
    top, left = (round(f / 2) if u is None else int(u * (f + 1)) for f in free)
    return resize(pixels, (height, width), (top, left, size, size))


def adm_crop(pixels: np.ndarray, size: int) -> np.ndarray:
    """(H, W, 3) -> (S, S, 3) uint8: the crop of guided-diffusion (openai/guided-diffusion, image_datasets.py).

    Halved by a box filter while the shorter edge is at least 2 S, bicubic to round(edge S / s), offset // 2.
    """
    while min(pixels.shape[:2]) >= 2 * size:
        pixels = resize(pixels, (pixels.shape[0] // 2, pixels.shape[1] // 2), kind="box")
    scale = size / min(pixels.shape[:2])
    height, width = round(pixels.shape[0] * scale), round(pixels.shape[1] * scale)
    return resize(pixels, (height, width), ((height - size) // 2, (width - size) // 2, size, size))


def scaled_size(height: int, width: int, size: int) -> tuple[int, int]:
    """Height and width after the shorter edge became `size`."""
    if height <= width:
        return size, int(size * width / height)
    return int(size * height / width), size


def halve(pixels: np.ndarray) -> np.ndarray:
    """(H, W, 3) -> (H / 2, W / 2, 3) uint8: the mean of every 2 x 2 pixels, rounded half up. Edges must be even."""
    if pixels.shape[0] % 2 or pixels.shape[1] % 2:
        raise ValueError(f"only even edges can be halved, not {pixels.shape[0]} x {pixels.shape[1]}")
    rows = pixels[0::2].astype(np.uint16) + pixels[1::2]
    return ((rows[:, 0::2] + rows[:, 1::2] + 2) >> 2).astype(np.uint8)


def encode_png(pixels: np.ndarray, compress_level: int = 6) -> bytes:
    """(H, W, 3) uint8 as a PNG file."""
    return _encoded(pixels, "PNG", compress_level=compress_level)


def encode_webp(pixels: np.ndarray) -> bytes:
    """(H, W, 3) uint8 as a lossless WebP file; method 0 takes a third of a PNG's time, and others save little more."""
    return _encoded(pixels, "WEBP", lossless=True, method=0)


def encode_jpeg(pixels: np.ndarray) -> bytes:
    """(H, W, 3) uint8 as a JPEG file of quality 90, with halved colour planes."""
    return _encoded(pixels, "JPEG", quality=90)


def _encoded(pixels: np.ndarray, kind: str, **settings: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind, **settings)
    return out.getvalue()


def to_float(pixels: "torch.Tensor") -> "torch.Tensor":
    """(B, H, W, 3) uint8 -> (B, 3, H, W) float32 in [0, 1], contiguous, on the same device."""
    import torch

    if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[-1] != 3:
        raise ValueError(f"expected (B, H, W, 3) uint8, got {tuple(pixels.shape)} {pixels.dtype}")
    return pixels.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format).div_(255)


def to_bytes(images: "torch.Tensor") -> "torch.Tensor":
    """(B, 3, H, W) float -> (B, H, W, 3) uint8, clipped to [0, 1] and rounded; truncating would darken pictures."""
    import torch

    if not images.is_floating_point() or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"expected (B, 3, H, W) floating point, got {tuple(images.shape)} {images.dtype}")
    scaled = images.detach().to(torch.float32).clamp(0, 1).mul(255).round()
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def extension_of(data: bytes) -> str:
    """What the first bytes of an image file say it is: "jpg", "png" or "webp". Raises BadImage for anything else."""
    if data[:3] == b"\xff\xd8\xff":
        return "jpg"
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return "png"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    if not data:
        raise BadImage("empty", "the file is empty")
    raise BadImage("format", f"no JPEG, PNG or WebP: it starts with {data[:8]!r}")


def _upright(image: Image.Image) -> Image.Image:
    turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    return image if turn is None else image.transpose(turn)


def _to_rgb(image: Image.Image) -> np.ndarray:
    """A loaded image of any mode as (H, W, 3) uint8."""
    mode = image.mode
    if mode == "RGB" and "transparency" not in image.info:
        planes = b"".join(image.tobytes("raw", band) for band in "RGB")  # as fast as interleaved, and so is the resize
        return np.frombuffer(planes, np.uint8).reshape(3, image.height, image.width).transpose(1, 2, 0)
    if mode.startswith("I"):
        return _repeat((np.asarray(image).astype(np.int32) >> 8).clip(0, 255).astype(np.uint8))
    if mode == "CMYK":
        return _from_cmyk(np.asarray(image))
    if mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        return _on_white(np.asarray(image.convert("RGBA")))
    if mode in ("L", "1"):
        return _repeat(np.asarray(image.convert("L")))
    if mode in ("P", "RGBX", "YCbCr"):
        return np.asarray(image.convert("RGB"))
    raise BadImage("mode", f"pixels of mode {mode} are not known")


def _repeat(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[:, :, None], 3, axis=2)


def _from_cmyk(inks: np.ndarray) -> np.ndarray:
    """(H, W, 4) uint8 -> RGB: light the black ink lets through, less what the colour takes of it, rounded."""
    light = 255 - inks[:, :, 3:].astype(np.int32)
    return (light - (inks[:, :, :3] * light + 127) // 255).astype(np.uint8)


def _on_white(rgba: np.ndarray) -> np.ndarray:
    alpha = rgba[:, :, 3:].astype(np.int32)
    return ((rgba[:, :, :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
