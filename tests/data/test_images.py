"""Decoding of image files of all modes, and the files that are refused."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from image_files import encoded, noise
from PIL import Image, features

from titokctl.config.preprocessing import PreprocessingConfig
from titokctl.data.images import (
    BadImage,
    adm_crop,
    crop_at,
    decode,
    encode_png,
    halve,
    preprocess,
    scaled_size,
    shorter_edge_to,
    to_bytes,
    to_float,
)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def png_of(width: int, height: int, depth: int, colour: int, rows: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG put together by hand, for kinds that Pillow does not write."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, body) for kind, body in parts)


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("WEBP", {"lossless": True})])
def test_rgb_comes_back_as_it_is(kind: str, options: dict[str, object]) -> None:
    pixels = noise(13, 17)
    np.testing.assert_array_equal(decode(encoded(pixels, kind, **options)), pixels)


def test_jpeg_is_pillows() -> None:
    data = encoded(noise(40, 33), "JPEG", quality=90)
    np.testing.assert_array_equal(decode(data), np.asarray(Image.open(io.BytesIO(data))))


def test_grey_is_repeated() -> None:
    grey = noise(9, 8)[:, :, 0]
    for kind in ("PNG", "JPEG"):
        found = decode(encoded(grey, kind))
        assert found.shape == (9, 8, 3)
        assert (found == found[:, :, :1]).all()
    np.testing.assert_array_equal(decode(encoded(grey))[:, :, 0], grey)


def test_black_and_white() -> None:
    bits = noise(9, 8)[:, :, 0] > 127
    np.testing.assert_array_equal(decode(encoded(bits))[:, :, 1], np.where(bits, 255, 0))


def test_sixteen_bits_keep_the_upper_eight() -> None:
    values = np.array([[0, 255, 256, 32767, 65535]], np.uint16)
    np.testing.assert_array_equal(decode(encoded(values))[0, :, 0], [0, 0, 1, 127, 255])
    row = b"\0" + values.byteswap().tobytes() * 3
    colour = decode(png_of(5, 1, 16, 2, row))
    np.testing.assert_array_equal(colour.reshape(-1)[:5], [0, 0, 1, 127, 255])


def test_alpha_is_composited_on_white() -> None:
    rgba = noise(16, 16, 4)
    rgba[0, 0], rgba[0, 1], rgba[0, 2] = (10, 20, 30, 0), (10, 20, 30, 255), (10, 20, 30, 128)
    expected = np.rint(rgba[..., :3] * (rgba[..., 3:] / 255) + 255 * (1 - rgba[..., 3:] / 255))
    for data in (encoded(rgba), encoded(rgba, "WEBP", lossless=True, exact=True)):
        found = decode(data)
        assert np.abs(found - expected).max() <= 1
        np.testing.assert_array_equal(found[0, :3], [[255, 255, 255], [10, 20, 30], [132, 137, 142]])


def test_grey_with_alpha() -> None:
    found = decode(encoded(np.array([[[40, 255], [40, 0]]], np.uint8)))
    np.testing.assert_array_equal(found, [[[40] * 3, [255] * 3]])


def test_palettes_with_and_without_transparency() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([200, 10, 20, 5, 6, 7])
    image.putdata([0, 1])
    np.testing.assert_array_equal(decode(saved(image, "PNG")), [[[200, 10, 20], [5, 6, 7]]])
    np.testing.assert_array_equal(decode(saved(image, "PNG", transparency=1)), [[[200, 10, 20], [255, 255, 255]]])


def test_a_transparent_colour_of_rgb_and_grey() -> None:
    data = encoded(np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8), transparency=(4, 5, 6))
    np.testing.assert_array_equal(decode(data), [[[1, 2, 3], [255, 255, 255]]])
    data = encoded(np.array([[7, 9]], np.uint8), transparency=9)
    np.testing.assert_array_equal(decode(data), [[[7] * 3, [255] * 3]])


def test_cmyk() -> None:
    inks = noise(16, 24, 4)
    data = saved(Image.fromarray(inks, "CMYK"), "JPEG", quality=95)
    opened = Image.open(io.BytesIO(data))
    assert opened.mode == "CMYK"
    light = 255.0 - np.asarray(opened).astype(float)
    assert np.abs(decode(data) - light[..., :3] * light[..., 3:] / 255).max() <= 0.5


def test_exif_is_ignored_unless_asked_for() -> None:
    pixels = noise(8, 12)
    for orientation, turned in ((6, np.rot90(pixels, -1)), (3, pixels[::-1, ::-1]), (2, pixels[:, ::-1])):
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = encoded(pixels, exif=exif)
        np.testing.assert_array_equal(decode(data), pixels)
        np.testing.assert_array_equal(decode(data, exif=True), turned)


def test_the_first_frame_of_an_animation() -> None:
    frames = [Image.fromarray(noise(6, 6, seed=s)) for s in range(2)]
    data = saved(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    np.testing.assert_array_equal(decode(data), np.asarray(frames[0]))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_no_cut_file_is_taken_for_a_picture(kind: str) -> None:
    data = encoded(noise(40, 40), kind)
    for share in (0.05, 0.3, 0.6, 0.9):
        with pytest.raises(BadImage) as caught:
            decode(data[: int(len(data) * share)])
        assert caught.value.kind in {"truncated", "unreadable"}
        assert caught.value.text


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"", "empty"),
        (b"GIF89a" + bytes(40), "truncated"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "format"),
        (b"just some text", "format"),
        (b"\xff\xd8\xff" + bytes(100), "unreadable"),
        (b"\x89PNG\r\n\x1a\n" + b"abc", "truncated"),
    ],
)
def test_other_files_are_refused_by_kind(data: bytes, kind: str) -> None:
    with pytest.raises(BadImage) as caught:
        decode(data)
    assert caught.value.kind == kind


@pytest.mark.parametrize("kind", ["BMP", "TIFF", "GIF", "AVIF"])
def test_further_formats_are_read(kind: str) -> None:
    if not features.check("avif") and kind == "AVIF":
        pytest.skip("the installed Pillow can't read AVIF")
    pixels = noise(6, 5) // 64 * 64 if kind != "AVIF" else np.full((16, 16, 3), 130, np.uint8)
    options = {"quality": 100, "subsampling": "4:4:4"} if kind == "AVIF" else {}
    found = decode(encoded(pixels, kind, **options)).astype(int)
    assert found.shape == pixels.shape
    assert abs(found - pixels).max() <= (2 if kind == "AVIF" else 0)


def test_of_an_animation_the_first_frame_is_read() -> None:
    first, second = (Image.fromarray(np.full((4, 4, 3), value, np.uint8)) for value in (0, 255))
    out = io.BytesIO()
    first.save(out, "GIF", save_all=True, append_images=[second])
    assert not decode(out.getvalue()).any()


def test_other_formats_that_pillow_knows_are_refused() -> None:
    for kind in ("PPM", "TGA", "ICO", "PCX"):
        with pytest.raises(BadImage, match="not an image that can be read"):
            decode(encoded(noise(16, 16), kind))


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "a Git LFS pointer"),
        (b"\n<!DOCTYPE html><title>Log in</title>", "an HTML page"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied", "an XML document"),
        (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
        (b"PK\x03\x04", "a zip archive"),
        (b"\x1f\x8b\x08", "compressed with gzip"),
    ],
)
def test_a_file_that_is_no_image_is_named(head: bytes, words: str) -> None:
    with pytest.raises(BadImage, match=words):
        decode(head)


@pytest.mark.parametrize("kind", ["WEBP", "AVIF"])
def test_decoders_that_need_much_memory_have_a_limit_of_their_own(kind: str) -> None:
    if not features.check("avif") and kind == "AVIF":
        pytest.skip("the installed Pillow can't read AVIF")
    out = io.BytesIO()
    Image.new("RGB", (9000, 8000)).save(out, kind, **({"method": 0} if kind == "WEBP" else {"speed": 10}))
    with pytest.raises(BadImage, match="9000 x 8000 pixels, more than 67,108,864, the limit of") as caught:
        decode(out.getvalue())
    assert caught.value.kind == "too-large"


def test_a_pixel_bomb_is_refused_before_it_is_decoded() -> None:
    bomb = png_of(100_000, 100_000, 8, 2, b"")
    with pytest.raises(BadImage, match="100000 x 100000") as caught:
        decode(bomb)
    assert caught.value.kind == "too-large"
    with pytest.raises(BadImage, match="more than 99"):
        decode(encoded(noise(10, 10)), max_pixels=99)


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(375, 500, (256, 341)), (500, 375, (341, 256)), (256, 256, (256, 256)), (100, 333, (256, 852))],
)
def test_scaled_sizes(height: int, width: int, expected: tuple[int, int]) -> None:
    assert scaled_size(height, width, 256) == expected


def test_crop_at_rounds_its_offset_to_even() -> None:
    # 65 - 64 leaves half a pixel on either side: round(0.5) is 0; 67 - 64 leaves 1.5: round(1.5) is 2.
    for width, left in ((65, 0), (67, 2), (69, 2), (66, 1)):
        pixels = noise(64, width)
        np.testing.assert_array_equal(crop_at(pixels, 64), pixels[:, left : left + 64])
        np.testing.assert_array_equal(
            crop_at(pixels.transpose(1, 0, 2), 64), pixels.transpose(1, 0, 2)[left : left + 64]
        )


@pytest.mark.parametrize(("height", "width"), [(90, 120), (120, 90), (70, 700), (33, 40), (64, 64)])
def test_crop_at_is_pillows_transform(height: int, width: int) -> None:
    pixels = noise(height, width)
    new_height, new_width = scaled_size(height, width, 64)
    whole = Image.fromarray(pixels).resize((new_width, height), Image.Resampling.BICUBIC)
    whole = whole.resize((new_width, new_height), Image.Resampling.BICUBIC)
    top, left = round((new_height - 64) / 2), round((new_width - 64) / 2)
    expected = np.asarray(whole)[top : top + 64, left : left + 64]
    np.testing.assert_array_equal(preprocess(encoded(pixels), PreprocessingConfig(size=64)), expected)


def test_windows_are_cut_from_one_whole() -> None:
    pixels = noise(50, 91)
    whole = shorter_edge_to(pixels, 32)
    assert whole.shape == (32, 58, 3)
    for u, left in ((0.0, 0), (0.5, 13), (0.999, 26)):
        np.testing.assert_array_equal(crop_at(pixels, 32, u), whole[:, left : left + 32])
        np.testing.assert_array_equal(crop_at(whole, 32, u), whole[:, left : left + 32])


@pytest.mark.parametrize(("height", "width"), [(64, 64), (100, 75), (129, 300), (301, 257)])
def test_adm_crop_follows_guided_diffusion(height: int, width: int) -> None:
    pixels = noise(height, width)
    image = Image.fromarray(pixels)
    while min(image.size) >= 2 * 32:
        image = image.resize((image.width // 2, image.height), Image.Resampling.BOX)
        image = image.resize((image.width, image.height // 2), Image.Resampling.BOX)
    scale = 32 / min(image.size)
    new_width, new_height = round(image.width * scale), round(image.height * scale)
    image = image.resize((new_width, image.height), Image.Resampling.BICUBIC)
    image = image.resize((new_width, new_height), Image.Resampling.BICUBIC)
    top, left = (new_height - 32) // 2, (new_width - 32) // 2
    np.testing.assert_array_equal(adm_crop(pixels, 32), np.asarray(image)[top : top + 32, left : left + 32])


def test_fast_decoding_is_libjpegs_and_never_too_small() -> None:
    pixels = np.asarray(Image.fromarray(noise(6, 8)).resize((403, 301), Image.Resampling.BICUBIC))
    data = encoded(pixels, "JPEG", quality=95)
    shapes = {size: decode(data, at_least=size).shape[:2] for size in (301, 151, 150, 75, 38, 37, 8)}
    assert shapes == {
        301: (301, 403), 151: (301, 403), 150: (151, 202), 75: (76, 101), 38: (76, 101), 37: (38, 51), 8: (38, 51),
    }  # fmt: skip
    fast = preprocess(data, PreprocessingConfig(size=64, fast_decode=True))
    exact = preprocess(data, PreprocessingConfig(size=64))
    assert not np.array_equal(fast, exact)
    assert np.abs(fast.astype(int) - exact).mean() < 3
    for other in (encoded(pixels), encoded(pixels[:, :, 0], "JPEG"), saved(Image.new("CMYK", (300, 300)), "JPEG")):
        assert min(decode(other, at_least=64).shape[:2]) >= 64
    np.testing.assert_array_equal(decode(encoded(pixels), at_least=64), pixels)


def test_halving_is_the_rounded_mean() -> None:
    pixels = noise(10, 14)
    blocks = pixels.reshape(5, 2, 7, 2, 3).astype(float).mean(axis=(1, 3))
    np.testing.assert_array_equal(halve(pixels), np.floor(blocks + 0.5))
    with pytest.raises(ValueError, match="even edges"):
        halve(noise(3, 4))


def test_bytes_survive_the_way_to_floats_and_back() -> None:
    every = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).repeat(2, 1, 1, 3)
    floats = to_float(every)
    assert floats.shape == (2, 3, 16, 16)
    assert floats.dtype == torch.float32
    assert floats.is_contiguous()
    assert (floats.min(), floats.max()) == (0, 1)
    assert torch.equal(to_bytes(floats), every)


def test_bytes_are_rounded_and_clipped() -> None:
    values = torch.tensor([-1.0, 0.4 / 255, 0.6 / 255, 254.4 / 255, 2.0]).reshape(1, 1, 1, 5).repeat(1, 3, 1, 1)
    assert to_bytes(values)[0, 0, :, 0].tolist() == [0, 0, 1, 254, 255]
    assert to_bytes(values.bfloat16()).dtype == torch.uint8


def test_wrong_tensors_are_named() -> None:
    with pytest.raises(ValueError, match=r"expected \(B, H, W, 3\) uint8"):
        to_float(torch.zeros(1, 3, 4, 4, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"expected \(B, 3, H, W\) floating point"):
        to_bytes(torch.zeros(1, 4, 4, 3))


def test_png_round_trip() -> None:
    pixels = noise(7, 5)
    np.testing.assert_array_equal(decode(encode_png(pixels)), pixels)
