"""Images of every mode and kind, written by Pillow and read back."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import encoded
from PIL import Image

from promptcl.data import declared, decode
from promptcl.data.checked import assume_depth, depth_of
from promptcl.data.inputs import labelled, unlabelled
from promptcl.errors import UserError

RED = (255, 0, 0)


def red(mode: str) -> Image.Image:
    return Image.new("RGB", (24, 16), RED).convert(mode)


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        *[("RGB", kind) for kind in ("png", "jpeg", "webp", "bmp", "gif", "tiff", "mpo")],
        *[("RGBA", kind) for kind in ("png", "webp", "tiff")],
        *[("P", kind) for kind in ("png", "gif", "tiff", "bmp")],
        *[("CMYK", kind) for kind in ("jpeg", "tiff")],
        ("YCbCr", "tiff"),
    ],
)
def test_colour_modes_come_out_as_that_colour(mode: str, kind: str) -> None:
    image = decode.decode(encoded(red(mode), kind), 512)
    assert image.dtype == torch.uint8
    assert image.shape == (3, 16, 24)
    assert (image[:, 8, 12].int() - torch.tensor(RED)).abs().max() <= 12


@pytest.mark.parametrize(("top", "dtype"), [(1.0, np.float32), (255.0, np.float32), (65535.0, np.float32)])
def test_float_images_are_scaled_by_their_range(top: float, dtype: Any) -> None:
    ramp = np.linspace(0, top, 32, dtype=dtype).reshape(4, 8)
    image = decode.decode(encoded(Image.fromarray(ramp), "tiff"), 512)
    assert image[0].flatten().tolist() == [int(255 * i / 31 + 1e-4) for i in range(32)]


def test_of_an_animation_the_first_frame_counts() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, (0, 255, 0), (0, 0, 255))]
    for kind, options in (("gif", {}), ("webp", {"lossless": True}), ("png", {}), ("tiff", {})):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert decode.decode(data, 512)[:, 4, 4].tolist() == list(RED), kind


def test_damaged_exif_does_not_cost_the_image() -> None:
    data = encoded(red("RGB"), "jpeg", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff" + b"\xff" * 30)
    assert decode.decode(data, 512).shape == (3, 16, 24)


def test_other_formats_are_not_tried_whatever_they_are_called(tmp_path: Path) -> None:
    """Pillow would give an EPS to Ghostscript."""
    for kind in ("eps", "pcx", "ico"):
        (tmp_path / "a.jpg").write_bytes(encoded(red("RGB"), kind))
        with pytest.raises(UserError, match=r"a\.jpg does not decode as an image \(not the content of a png"):
            unlabelled(tmp_path / "a.jpg").image(0)


def test_too_many_pixels_are_refused_before_they_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(declared, "MAX_PIXELS", 1_000_000)
    with pytest.raises(ValueError, match="1001 x 1000 pixels are more than 1 million, make it smaller"):
        decode.decode(encoded(Image.new("L", (1001, 1000)), "png"), 512)
    # A JPEG of that size is read at a fraction of it.
    assert decode.decode(encoded(Image.new("L", (2000, 2000)), "jpeg"), 512).shape == (3, 512, 512)


def drawing(bits: int, top: int = 255) -> Any:
    return (np.linspace(0, top, 64).astype(np.uint16).reshape(8, 8)) << (bits - 8)


@pytest.mark.parametrize("kind", ["png", "tiff"])
@pytest.mark.parametrize("bits", [8, 10, 12, 14])
def test_values_of_fewer_than_16_bits_are_scaled_by_the_depth_of_their_set(
    bits: int, kind: str, tmp_path: Path
) -> None:
    bright, dark = (Image.fromarray(drawing(bits, top)) for top in (255, 40))
    for name, image in (("bright", bright), ("dark", dark)):
        (tmp_path / f"{name}.{kind}").write_bytes(encoded(image, kind))
    images = unlabelled(tmp_path)
    for i, top in enumerate((255, 40)):
        assert (images.image(i)[0].int() - torch.from_numpy(drawing(8, top).astype(np.int32))).abs().max() == 0
    assert depth_of(images) == bits
    alone = unlabelled((tmp_path / f"dark.{kind}").read_bytes())
    assume_depth(alone, bits)  # as a learner does with what it remembers
    assert torch.equal(alone.image(0), images.image(1))


def test_sixteen_bits_keep_their_upper_byte_and_rgb_is_read_to_its_lower_one() -> None:
    values = np.random.default_rng(0).integers(0, 65536, (8, 8), dtype=np.uint16)
    assert torch.equal(
        decode.decode(encoded(Image.fromarray(values), "png"), 512)[0], torch.from_numpy(values >> 8).byte()
    )
    rgb = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint16)
    for bits in (8, 10, 12, 16):
        png = deep_rgb(rgb << (bits - 8))
        assert torch.equal(decode.decode(png, 512), torch.from_numpy(rgb.astype(np.uint8)).permute(2, 0, 1)), bits


def deep_rgb(values: Any) -> bytes:
    """A PNG of 16-bit RGB, which Pillow does not write."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def webp_of(width: int, height: int) -> bytes:
    """An animated WebP whose canvas is declared so large, and whose frames are small."""
    frames = [Image.new("RGB", (16, 16), colour) for colour in (RED, (0, 0, 255))]
    data = bytearray(encoded(frames[0], "webp", save_all=True, append_images=frames[1:]))
    assert data[12:16] == b"VP8X"
    data[24:27], data[27:30] = ((side - 1).to_bytes(3, "little") for side in (width, height))
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (webp_of(10_000, 10_000), "10000 x 10000 pixels of this kind take more than 512 MiB to read"),
        (webp_of(16_384, 16_384), "268435456|more than 100 million"),
        (encoded(Image.new("1", (1, 100_001)), "png"), "1 x 100001 pixels: a side is longer than 100000"),
    ],
)
def test_what_would_take_too_much_memory_is_refused_by_its_header(data: bytes, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        decode.decode(data, 512)


def test_large_images_of_other_modes_are_averaged_down(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (700, 900, 4), dtype=np.uint8)
    data = encoded(Image.fromarray(pixels), "png")
    exact = decode.decode(data, 64)
    monkeypatch.setattr(decode, "MAX_MEMORY", 1_000_000)
    assert exact.shape == decode.decode(data, 64).shape == (3, 64, 82)
    assert (exact.int() - decode.decode(data, 64).int()).abs().float().mean() < 4


def test_a_progressive_jpeg_is_refused_where_its_coefficients_take_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(declared, "MAX_MEMORY", 5_000_000)
    image = Image.new("RGB", (1000, 1000))
    with pytest.raises(ValueError, match="of this kind take more than"):
        decode.decode(encoded(image, "jpeg", progressive=True), 128)
    assert decode.decode(encoded(image, "jpeg"), 128).shape == (3, 128, 128)


def test_a_long_strip_is_squeezed() -> None:
    assert decode.decode(encoded(Image.new("L", (50_000, 2)), "png"), 64).shape == (3, 2, 1024)


def test_arrays_tensors_and_pillow_images_are_one_image() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 10, 3), dtype=np.uint8)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    forms: list[Any] = [
        pixels,
        tensor,
        tensor.float() / 255,
        (pixels / 255).astype(np.float32),
        Image.fromarray(pixels),
    ]
    found = unlabelled([*forms, encoded(Image.fromarray(pixels), "png")])
    assert len(found) == 6
    assert all(torch.equal(image, tensor) for image in found.images(range(6)))
    assert len(unlabelled(np.stack([pixels, pixels]))) == len(unlabelled(torch.stack([tensor, tensor]))) == 2
    assert torch.equal(unlabelled(pixels[..., 0]).image(0), tensor[:1].expand(3, -1, -1))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.zeros((4, 4, 3), np.int64), "expected uint8"),
        (np.full((4, 4, 3), 7.0), "divide by 255"),
        (np.full((4, 4, 3), np.nan), "divide by 255"),
        (np.zeros((4, 4, 5), np.uint8), "expected an array"),
        (torch.zeros(4, 4, 3), "expected an array"),
        (np.zeros((0, 4, 3), np.uint8), "expected an array"),
        (b"nothing", "not the content of a png"),
        (7, "is a int; give a path"),
        ([], "no images were given"),
        ("nowhere.png", "there is no such file"),
    ],
)
def test_what_is_no_image_is_named(given: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        unlabelled(given if isinstance(given, str | list) else [given])


def test_class_folders_and_labels(tmp_path: Path) -> None:
    for name, count in (("dög", 1), ("cat", 2), ("ant/deep", 1)):
        (tmp_path / name).mkdir(parents=True)
        for i in range(count):
            red("RGB").save(tmp_path / name / f"{i}.png")
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "cat" / ".hidden.png").write_bytes(b"")
    images = labelled(tmp_path)
    assert images.classes == ("ant", "cat", "dög")
    assert images.labels.tolist() == [0, 1, 1, 2]
    assert len(unlabelled(tmp_path)) == 4
    given = labelled([images.image(0), images.image(1)], ["b", "a"])
    assert [given.classes[label] for label in given.labels] == ["b", "a"]
    for call, message in (
        (lambda: labelled([images.image(0)], ["a", "b"]), "1 images came with 2 labels"),
        (lambda: labelled([images.image(0)]), "have no labels"),
        (lambda: labelled(tmp_path / "cat"), "has no class folders"),
        (lambda: labelled(tmp_path / "none"), "none does not exist"),
        (lambda: unlabelled(tmp_path / "notes.txt").image(0), "not the content of a png"),
    ):
        with pytest.raises(UserError, match=message):
            call()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"class 'empty' in .* has no \w+"):
        labelled(tmp_path)


def test_a_folder_of_train_and_test_is_not_taken_for_two_classes(tmp_path: Path) -> None:
    for part in ("train", "test"):
        (tmp_path / part / "cat").mkdir(parents=True)
        red("RGB").save(tmp_path / part / "cat" / "a.png")
    with pytest.raises(UserError, match=r"holds test, train and no classes; give .*/train"):
        labelled(tmp_path)
