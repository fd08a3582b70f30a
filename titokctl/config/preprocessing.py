"""The way from an image file to a square of pixels; recorded as JSON in everything made from it."""

from typing import Literal

from titokctl.config.base import Config, PositiveInt

# Twice Pillow's MAX_IMAGE_PIXELS, the size from which Pillow itself refuses to go on.
DEFAULT_MAX_PIXELS = 178_956_970


class PreprocessingConfig(Config):
    """`size` is the edge S of the result in pixels.

    `crop` "center" brings the shorter edge to S by bicubic with antialias and cuts out the middle; "adm" is the crop of
    guided-diffusion: halvings by box filter first. `exif` turns the image as its EXIF tag says (ImageNet practice does
    not). `fast_decode` lets libjpeg decode large JPEGs at a half, quarter or eighth of their size, never below S: it is
    faster and gives other pixels. Images of more than `max_pixels` are refused before they are decoded.
    """

    size: PositiveInt
    crop: Literal["center", "adm"] = "center"
    exif: bool = False
    fast_decode: bool = False
    max_pixels: PositiveInt = DEFAULT_MAX_PIXELS
