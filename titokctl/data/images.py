"""All decisions about pixels: decoding, colours, resizing, cropping, range and rounding.

Image files are untrusted: the format is recognised by the first bytes, only the decoders of the formats in
`file_kind.IMAGE_KINDS` are ever called, and the declared size is checked before a pixel is decoded. Conversions that
differ between versions of Pillow (16-bit grey, CMYK, alpha) are computed here, in blocks of rows, so that they take
little memory beside the image.
"""

import importlib
import io
import struct
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import ExifTags, Image, ImageFile

from titokctl.config.preprocessing import DEFAULT_MAX_PIXELS, PreprocessingConfig
from titokctl.data.resize import resize
from titokctl.errors import UserError
from titokctl.formats.file_kind import HEAD_BYTES, described, image_kind
from titokctl.formats.shard_scan import MAX_IMAGE_BYTES

if TYPE_CHECKING:
    import torch

# Pillow's plug-in and its class by the names of `file_kind.IMAGE_KINDS`; a plug-in is imported when it is first needed.
PilImage = Image.Image
_DECODERS = {
    "jpg": ("JpegImagePlugin", "JpegImageFile"),
    "png": ("PngImagePlugin", "PngImageFile"),
    "webp": ("WebPImagePlugin", "WebPImageFile"),
    "gif": ("GifImagePlugin", "GifImageFile"),
    "bmp": ("BmpImagePlugin", "BmpImageFile"),
    "tiff": ("TiffImagePlugin", "TiffImageFile"),
    "avif": ("AvifImagePlugin", "AvifImageFile"),
}
# These decoders need 17 to 23 bytes a pixel, measured with Pillow 13; the others about 10.
_MAX_PIXELS = {"webp": 1 << 26, "avif": 1 << 26}
_ROWS = 128  # rows of pixels that are converted at once
_TOO_SHORT = (EOFError, struct.error)
_TURN = Image.Transpose
_TURNS = {
    2: _TURN.FLIP_LEFT_RIGHT, 3: _TURN.ROTATE_180, 4: _TURN.FLIP_TOP_BOTTOM, 5: _TURN.TRANSPOSE,
    6: _TURN.ROTATE_270, 7: _TURN.TRANSVERSE, 8: _TURN.ROTATE_90,
}  # fmt: skip


class BadImage(Exception):
    """An image file that can't be decoded.

    Args:
        kind: a stable word for the fault: empty, format, too-large, truncated, unreadable, mode.
        text: the fault in words.
    """

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind
        self.text = text


def decode(
    data: bytes, max_pixels: int = DEFAULT_MAX_PIXELS, exif: bool = False, at_least: int | None = None
) -> np.ndarray:
    """Decode an image file to (H, W, 3) uint8 RGB.

    Alpha is composited on white, CMYK and palettes become RGB, grey is repeated, of 16 bits the upper 8 are used, and
    of an animation the first frame.

    Args:
        max_pixels: limit for width x height.
        exif: apply the EXIF orientation.
        at_least: let libjpeg decode a JPEG at a half, quarter or eighth of its size, no edge shorter than this.

    Raises:
        BadImage: the bytes are not a whole image of a known format, or declare more than `max_pixels` pixels.
    """
    if len(data) > MAX_IMAGE_BYTES:
        raise BadImage("too-large", f"more than {MAX_IMAGE_BYTES >> 20} MiB")
    try:
        # Not Image.open, which would try other plug-ins and apply a limit of its own.
        kind = extension_of(data)
        image = _decoder(kind)(io.BytesIO(data))
        limit = min(max_pixels, _MAX_PIXELS.get(kind, max_pixels))
        if image.width * image.height > limit:
            why = f", the limit of {kind} files, whose decoder needs much memory" if limit < max_pixels else ""
            raise BadImage("too-large", f"{image.width} x {image.height} pixels, more than {limit:,}{why}")
        if at_least is not None:
            image.draft(image.mode, (at_least, at_least))
        image.load()
        turned = _upright(image) if exif else image
        return _to_rgb(turned)
    except BadImage:
        raise
    except MemoryError as error:
        raise UserError(
            f"not enough memory to decode an image of {len(data):,} bytes",
            "decode fewer at once with --workers 1, or leave out large images with --max-pixels",
        ) from error
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error, ... on broken files
        text = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, _TOO_SHORT) or isinstance(error.__cause__, _TOO_SHORT):
            raise BadImage("truncated", "the file ends too early") from error
        raise BadImage("truncated" if "truncated" in text.lower() else "unreadable", text) from error


def preprocess(data: bytes, config: PreprocessingConfig) -> np.ndarray:
    """Decode an image file to the (S, S, 3) uint8 square of `config`. Raises BadImage as `decode` does."""
    return square(decode_for(data, [config]), config)


def decode_for(data: bytes, configs: Sequence[PreprocessingConfig]) -> np.ndarray:
    """Decode an image file to (H, W, 3) uint8 for the squares of all `configs`, with the settings of the first one."""
    at_least = max(config.size for config in configs) if configs[0].fast_decode else None
    return decode(data, configs[0].max_pixels, configs[0].exif, at_least)


def square(pixels: np.ndarray, config: PreprocessingConfig) -> np.ndarray:
    """Crop and resize (H, W, 3) uint8 to the (S, S, 3) uint8 square of `config`."""
    return (adm_crop if config.crop == "adm" else crop_at)(pixels, config.size)


def shorter_edge_to(pixels: np.ndarray, size: int) -> np.ndarray:
    """Resize (H, W, 3) to (h, w, 3) uint8 with min(h, w) = `size`, as `crop_at` does before it crops."""
    return resize(pixels, scaled_size(pixels.shape[0], pixels.shape[1], size))


def crop_at(pixels: np.ndarray, size: int, u: float | None = None) -> np.ndarray:
    """Resize the shorter edge to `size` (bicubic, antialiased) and crop the longer one: (H, W, 3) -> (S, S, 3) uint8.

    The window is in the middle, or at the fraction `u` in [0, 1) of the possible offsets. Sizes and offsets are those
    of the usual ImageNet transform: longer edge int(S l / s), offset int(round((l - S) / 2)), rounding half to even.
    The result for an image and for its `shorter_edge_to` is the same.
    """
    height, width = scaled_size(pixels.shape[0], pixels.shape[1], size)
    free = height - size, width - size
    top, left = (round(f / 2) if u is None else int(u * (f + 1)) for f in free)
    return resize(pixels, (height, width), (top, left, size, size))


def adm_crop(pixels: np.ndarray, size: int) -> np.ndarray:
    """Crop as guided-diffusion does (openai/guided-diffusion, image_datasets.py): (H, W, 3) -> (S, S, 3) uint8.

    Halves by a box filter while the shorter edge is at least 2 S, then bicubic to round(edge S / s), offset // 2.
    """
    while min(pixels.shape[:2]) >= 2 * size:
        pixels = resize(pixels, (pixels.shape[0] // 2, pixels.shape[1] // 2), kind="box")
    scale = size / min(pixels.shape[:2])
    height, width = round(pixels.shape[0] * scale), round(pixels.shape[1] * scale)
    return resize(pixels, (height, width), ((height - size) // 2, (width - size) // 2, size, size))


def scaled_size(height: int, width: int, size: int) -> tuple[int, int]:
    """Return height and width with the shorter edge resized to `size`."""
    if height <= width:
        return size, int(size * width / height)
    return int(size * height / width), size


def halve(pixels: np.ndarray) -> np.ndarray:
    """Average every 2 x 2 pixels, rounded half up: (H, W, 3) -> (H / 2, W / 2, 3) uint8. Edges must be even."""
    if pixels.shape[0] % 2 or pixels.shape[1] % 2:
        raise ValueError(f"only even edges can be halved, not {pixels.shape[0]} x {pixels.shape[1]}")
    rows = pixels[0::2].astype(np.uint16) + pixels[1::2]
    return ((rows[:, 0::2] + rows[:, 1::2] + 2) >> 2).astype(np.uint8)


def encode_png(pixels: np.ndarray, compress_level: int = 6) -> bytes:
    """Encode (H, W, 3) uint8 as a PNG file."""
    return _encoded(pixels, "PNG", compress_level=compress_level)


def encode_webp(pixels: np.ndarray) -> bytes:
    """Encode (H, W, 3) uint8 as a lossless WebP file; method 0 takes a third of a PNG's time."""
    return _encoded(pixels, "WEBP", lossless=True, method=0)


def encode_jpeg(pixels: np.ndarray) -> bytes:
    """Encode (H, W, 3) uint8 as a JPEG file of quality 90, with halved colour planes."""
    return _encoded(pixels, "JPEG", quality=90)


def _encoded(pixels: np.ndarray, kind: str, **settings: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind, **settings)
    return out.getvalue()


def to_float(pixels: "torch.Tensor") -> "torch.Tensor":
    """Convert (B, H, W, 3) uint8 to (B, 3, H, W) float32 in [0, 1], contiguous, on the same device."""
    import torch

    if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[-1] != 3:
        raise ValueError(f"expected (B, H, W, 3) uint8, got {tuple(pixels.shape)} {pixels.dtype}")
    return pixels.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format).div_(255)


def to_bytes(images: "torch.Tensor") -> "torch.Tensor":
    """Convert (B, 3, H, W) float to (B, H, W, 3) uint8, clipped to [0, 1] and rounded; truncation would darken."""
    import torch

    if not images.is_floating_point() or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"expected (B, 3, H, W) floating point, got {tuple(images.shape)} {images.dtype}")
    scaled = images.detach().to(torch.float32).clamp(0, 1).mul(255).round()
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def extension_of(data: bytes) -> str:
    """Return the extension of an image file by its first bytes, such as "jpg". Raises BadImage for anything else."""
    kind = image_kind(data[:HEAD_BYTES])
    if kind is not None:
        return kind
    if not data:
        raise BadImage("empty", "the file is empty")
    raise BadImage("format", f"not an image that can be read, but {described(data[:HEAD_BYTES])}")


def _decoder(kind: str) -> type[ImageFile.ImageFile]:
    module, name = _DECODERS[kind]
    try:
        found: type[ImageFile.ImageFile] = getattr(importlib.import_module(f"PIL.{module}"), name)
    except (ImportError, AttributeError) as error:
        raise BadImage("format", f"the installed Pillow can't read {kind} files") from error
    return found


def _upright(image: Image.Image) -> Image.Image:
    turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    return image if turn is None else image.transpose(turn)


def _to_rgb(image: Image.Image) -> np.ndarray:
    """Return the pixels of a loaded image of any mode, (H, W, 3) uint8. Raises BadImage for modes without a rule."""
    mode = image.mode
    if mode == "RGB" and "transparency" not in image.info:
        # Planes are read as fast as interleaved pixels, and resized faster.
        planes = b"".join(image.tobytes("raw", band) for band in "RGB")
        return np.frombuffer(planes, np.uint8).reshape(3, image.height, image.width).transpose(1, 2, 0)
    if mode.startswith("I"):
        return _by_rows(_from_16_bits, np.asarray(image))
    if mode == "CMYK":
        return _by_rows(_from_cmyk, np.asarray(image))
    if mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        return _by_rows(_on_white, np.asarray(image.convert("RGBA")))
    if mode in ("L", "1"):
        return _repeat(np.asarray(image.convert("L")))
    if mode in ("P", "RGBX", "YCbCr"):
        return np.asarray(image.convert("RGB"))
    raise BadImage("mode", f"pixels of mode {mode} are not supported")


def pixels_of_picture(picture: "PilImage | np.ndarray") -> np.ndarray:
    """Return the pixels of a picture in memory, (H, W, 3) uint8, converted as those of a file are.

    Args:
        picture: an image of Pillow, or an array (H, W, 3) uint8, (H, W, 4) with alpha or (H, W) grey.

    Raises ValueError for an array of another shape or type, BadImage for an image of a mode without a rule.
    """
    if isinstance(picture, PilImage):
        picture.load()
        return _to_rgb(picture)
    if picture.dtype != np.uint8 or picture.ndim not in (2, 3) or not picture.size:
        raise ValueError(f"a picture: expected (H, W, 3) uint8, got {picture.shape} {picture.dtype}")
    if picture.ndim == 3 and picture.shape[2] not in (3, 4):
        raise ValueError(f"a picture: expected 3 or 4 channels in the last axis, got {picture.shape}")
    return _to_rgb(Image.fromarray(picture))


def _by_rows(convert: Callable[[np.ndarray], np.ndarray], pixels: np.ndarray) -> np.ndarray:
    """Return convert(pixels), (H, W, 3) uint8, computed some rows at a time."""
    out = np.empty((*pixels.shape[:2], 3), np.uint8)
    for first in range(0, len(pixels), _ROWS):
        out[first : first + _ROWS] = convert(pixels[first : first + _ROWS])
    return out


def _from_16_bits(grey: np.ndarray) -> np.ndarray:
    return _repeat((grey.astype(np.int32) >> 8).clip(0, 255).astype(np.uint8))


def _repeat(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[:, :, None], 3, axis=2)


def _from_cmyk(inks: np.ndarray) -> np.ndarray:
    """Convert (H, W, 4) uint8 CMYK to RGB: the light that passes the black ink, reduced by each colour, rounded."""
    light = 255 - inks[:, :, 3:].astype(np.int32)
    return (light - (inks[:, :, :3] * light + 127) // 255).astype(np.uint8)


def _on_white(rgba: np.ndarray) -> np.ndarray:
    alpha = rgba[:, :, 3:].astype(np.int32)
    return ((rgba[:, :, :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
