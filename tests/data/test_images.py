from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from helpers import encoded
from PIL import Image
from torch import Tensor

from promptcl.config.schema import DataConfig
from promptcl.data.decode import decode
from promptcl.data.files import FileSource
from promptcl.data.images import ArraySource, ImageSet
from promptcl.data.splits import load_split
from promptcl.errors import UserError

RED, WHITE, BLACK = (255, 0, 0), (255, 255, 255), (0, 0, 0)


def colour(image: Tensor, row: int = 0, column: int = 0) -> tuple[int, ...]:
    return tuple(image[:, row, column].tolist())


def wrote(file: Path, train: list[int], test: list[int] | None = None, **more: Any) -> DataConfig:
    """An .npz with one 2 x 2 image a label; pixel = position in its part."""

    def part(name: str, labels: list[int]) -> dict[str, npt.NDArray[Any]]:
        images = np.arange(len(labels), dtype=np.uint8)[:, None, None].repeat(2, 1).repeat(2, 2)
        return {f"{name}_images": images, f"{name}_labels": np.array(labels, dtype=np.uint8)[:, None]}

    arrays = part("train", train) | ({} if test is None else part("test", test))
    np.savez(file, **arrays, **more.pop("arrays", {}))  # type: ignore[arg-type]
    return DataConfig(name="npz", root=str(file), **more)


def positions(images: ImageSet) -> list[int]:
    return [int(image[0, 0, 0]) for image in images.images(range(len(images)))]


def test_grey_palette_and_cmyk_become_rgb() -> None:
    assert colour(decode(encoded(Image.new("L", (3, 2), 77)), 512)) == (77, 77, 77)
    assert colour(decode(encoded(Image.new("1", (3, 2), 1)), 512)) == WHITE
    assert colour(decode(encoded(Image.new("RGB", (3, 2), RED).convert("P")), 512)) == RED
    assert decode(encoded(Image.new("L", (3, 2))), 512).shape == (3, 2, 3)
    cmyk = colour(decode(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "jpeg"), 512))
    assert cmyk[0] > 240
    assert max(cmyk[1:]) < 15


def test_transparent_pixels_become_white() -> None:
    rgba = Image.new("RGBA", (2, 1), (*RED, 255))
    rgba.putpixel((0, 0), (0, 0, 0, 0))
    palette = Image.new("P", (2, 1), 1)
    palette.putpalette([*BLACK, *RED])
    palette.putpixel((0, 0), 0)
    for data in (encoded(rgba), encoded(rgba, "webp", lossless=True), encoded(palette, transparency=0)):
        image = decode(data, 512)
        assert colour(image, 0, 0) == WHITE
        assert colour(image, 0, 1) == RED
    assert colour(decode(encoded(Image.new("LA", (1, 1), (9, 0))), 512)) == WHITE
    assert colour(decode(encoded(Image.new("LA", (1, 1), (9, 255))), 512)) == (9, 9, 9)


def test_sixteen_bits_keep_their_upper_byte() -> None:
    ramp = np.array([[0, 255, 256, 32768, 65535]], dtype=np.uint16)
    image = decode(encoded(Image.fromarray(ramp)), 512)
    assert image[0, 0].tolist() == image[2, 0].tolist() == [0, 0, 1, 128, 255]


def test_exif_orientation_is_followed() -> None:
    image = Image.new("RGB", (16, 8), WHITE)
    image.paste(RED, (0, 0, 8, 8))  # left half
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise: the left half comes to the top
    upright = decode(encoded(image, "jpeg", exif=exif, quality=95, subsampling=0), 512)
    assert upright.shape == (3, 16, 8)
    assert upright[1, :6].max() < 60
    assert upright[1, 10:].min() > 200


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "bmp"])
def test_large_photos_are_reduced_and_keep_their_aspect(kind: str) -> None:
    gradient = np.linspace(0, 255, 1500).astype(np.uint8)[None, :, None].repeat(1000, 0).repeat(3, 2)
    data = encoded(Image.fromarray(gradient), kind)
    small = decode(data, 100)
    assert small.shape == (3, 100, 150)
    expected = torch.from_numpy(gradient).permute(2, 0, 1).reshape(3, 100, 10, 150, 10).float().mean((2, 4))
    assert (small - expected).abs().max() < 4
    assert decode(data, 1000).shape == (3, 1000, 1500)


def test_image_that_does_not_decode_is_named() -> None:
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    files = {
        "cut.png": encoded(photo)[:-3000],
        "text.jpg": b"hello",
        "empty.webp": b"",
        "cut.jpg": encoded(photo, "jpeg")[:900],
    }
    source = FileSource(list(files), files.__getitem__, "data")
    for row, path in enumerate(files):
        with pytest.raises(UserError, match=f"^data/{path} does not decode"):
            source.read(row)


def test_decompression_bomb_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    source = FileSource(["bomb.png"], lambda path: encoded(Image.new("L", (100, 100))))
    with pytest.raises(UserError, match=r"bomb\.png does not decode as an image .*more pixels than are ever read"):
        source.read(0)


def test_cache_is_bounded_and_shared_by_views() -> None:
    data = encoded(Image.new("RGB", (256, 256), RED))  # 192 KiB decoded: five fit into 1 MiB
    fetched: list[str] = []

    def fetch(path: str) -> bytes:
        fetched.append(path)
        return data

    paths = [f"{i}.png" for i in range(8)]
    images = ImageSet(FileSource(paths, fetch, cache_mb=1), ["a", "b"], [0, 1] * 4)
    first = images.images(range(8))
    assert fetched == paths
    views = [*images.of_classes(["b"]).images(range(4)), *images.select([0, 2, 4]).images(range(3))]
    assert fetched[8:] == ["5.png", "7.png"]  # 0 to 4 are remembered
    assert all(torch.equal(view, first[0]) for view in views)
    uncached = FileSource(paths, fetch, cache_mb=0)
    fetched.clear()
    for _ in range(2):
        uncached.read(3)
    assert fetched == ["3.png", "3.png"]


def test_threads_may_read_the_same_set() -> None:
    files = {f"{i}.png": encoded(Image.new("L", (64, 64), i)) for i in range(40)}
    images = ImageSet(FileSource(list(files), files.__getitem__, cache_mb=1), ["a"], [0] * 40)
    seen: list[list[int]] = []
    threads = [threading.Thread(target=lambda: seen.append(positions(images))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [list(range(40))] * 4


def test_views_renumber_labels_and_keep_names() -> None:
    pixels = np.arange(6, dtype=np.uint8).reshape(6, 1, 1)
    images = ImageSet(ArraySource(pixels, "digits"), ["x", "y", "z"], [0, 1, 2, 0, 1, 2])
    view = images.of_classes(["z", "x"])
    assert view.classes == ("z", "x")
    assert view.labels.tolist() == [1, 0, 1, 0]
    assert positions(view) == [0, 2, 3, 5]
    assert view.name(1) == "digits[2]"
    last = view.select([3, 0])
    assert positions(last) == [5, 0]
    assert last.labels.tolist() == [0, 1]
    assert len(images.select([])) == 0
    with pytest.raises(UserError, match="class 'w' is not in the data"):
        images.of_classes(["x", "w"])
    with pytest.raises(ValueError, match="6 images but 2 labels"):
        ImageSet(ArraySource(pixels, "digits"), ["x"], [0, 0])


def test_first_n_of_each_class_in_stored_order(tmp_path: Path) -> None:
    config = wrote(tmp_path / "a.npz", [1, 0, 1, 1, 0, 0], [0, 1, 0, 1], train_per_class=2, test_per_class=1)
    split = load_split(config)
    assert positions(split.train) == [0, 1, 2, 4]
    assert split.train.labels.tolist() == [1, 0, 1, 0]
    assert positions(split.test) == [0, 1]
    everything = load_split(DataConfig(name="npz", root=config.root, train_per_class=99))
    assert (len(everything.train), len(everything.test)) == (6, 4)


def test_validation_takes_the_next_training_images_and_never_reads_the_test_split(tmp_path: Path) -> None:
    labels = [0, 1, 0, 1, 0, 1, 0, 1, 0]
    config = wrote(tmp_path / "a.npz", labels, None, train_per_class=2, validation_per_class=1, test_per_class=7)
    split = load_split(config)  # the file has no test arrays
    assert positions(split.train) == [0, 1, 2, 3]
    assert positions(split.test) == [4, 5]
    split = load_split(DataConfig(name="npz", root=config.root, validation_per_class=3))
    assert positions(split.train) == [0, 1, 2]
    assert positions(split.test) == [3, 4, 5, 6, 7, 8]
    for more in ({"validation_per_class": 4}, {"validation_per_class": 1, "train_per_class": 4}):
        with pytest.raises(UserError, match=r"class '1' has 4 training images but .* needs 5"):
            load_split(DataConfig(name="npz", root=config.root, **more))  # type: ignore[arg-type]


def test_unknown_name_gets_the_nearest_one() -> None:
    for given, near in (("cifar10", "cifar100"), ("mnist", "mnist5k"), ("__init__", ".*")):
        with pytest.raises(UserError, match=f"data.name={given}: not one of the datasets .*(mean|are) .*{near}"):
            load_split(DataConfig(name=given))


@pytest.mark.parametrize(
    ("train", "test", "names", "message"),
    [
        ([0, 1], [0, 1, 2], None, "class '2' is in test but not in train"),
        ([0, 1, 2], [0, 1], None, "class '2' has no test images"),
        ([0, 2], [0, 2], ["a", "b", "c"], "class 'b' has no training images"),
        ([0, 1], [0, 0], ["a", "b"], "class 'b' has no test images"),
        ([], [0], None, "there are no training images"),
        ([0, 1], [0, 1], ["a", "a"], "the class name 'a' occurs twice"),
    ],
)
def test_classes_are_checked(
    tmp_path: Path, train: list[int], test: list[int], names: list[str] | None, message: str
) -> None:
    config = wrote(tmp_path / "a.npz", train, test, arrays={} if names is None else {"class_names": np.array(names)})
    with pytest.raises(UserError, match=message):
        load_split(config)
