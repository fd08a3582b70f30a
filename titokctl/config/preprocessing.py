"""The way from an image file to a square of pixels; recorded as JSON in everything made from it."""

from typing import Literal

from titokctl.config.base import Config, PositiveInt

# Twice Pillow's MAX_IMAGE_PIXELS, the size above which Pillow itself raises an error.
DEFAULT_MAX_PIXELS = 178_956_970


class PreprocessingConfig(Config):
    """Preprocessing of one image.

    Args:
        size: edge S of the result in pixels.
        crop: "center" resizes the shorter edge to S (bicubic, antialiased) and crops the middle; "adm" is the crop of
            guided-diffusion, which first halves with a box filter.
        exif: apply the EXIF orientation, which is not usual for ImageNet.
        fast_decode: let libjpeg decode large JPEGs at a half, quarter or eighth of their size, never below S. This is
            faster and gives other pixels.
        max_pixels: larger images are rejected before they are decoded.
    """

    size: PositiveInt
    crop: Literal["center", "adm"] = "center"
    exif: bool = False
    fast_decode: bool = False
    max_pixels: PositiveInt = DEFAULT_MAX_PIXELS
