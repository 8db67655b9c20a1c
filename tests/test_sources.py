"""Where images come from: folders, image files of every kind, and Fashion-MNIST."""

import gzip
import io
from pathlib import Path

import numpy as np
import pytest
from image_sources import Numbered, save, source_of, truncated_jpeg, write_idx
from PIL import Image
from tiny import image_folder

from psvit.data import datasets as data_module
from psvit.data.data_config import DataConfig
from psvit.data.datasets import open_data, read_idx
from psvit.data.sources import FileSource, LazySource, Subset, convert_image, load_image, upright_size
from psvit.errors import UserError


def test_a_lazy_source_opens_once_and_when_asked() -> None:
    opened: list[int] = []
    lazy = LazySource(lambda: opened.append(1) or Numbered(3))
    assert not opened
    assert (len(lazy), lazy.label(2), lazy.name(1), lazy.labels()) == (3, 2, "#1", [0, 1, 2])
    assert lazy.image(0).size == (1, 1)
    assert len(opened) == 1


# ---- folders


def test_a_folder_whose_name_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    try:
        image_folder(tmp_path / "set", ("ant", "caf\udce9"))
    except OSError:
        pytest.skip("the file system takes no such name")
    with pytest.raises(UserError, match=r"the name of the folder 'caf\\udce9' is not UTF-8: rename it"):
        open_data(DataConfig(str(tmp_path / "set")))


def test_a_file_whose_name_is_not_utf_8_is_named_with_an_escape() -> None:
    source = FileSource(["gone/caf\udce9.png"], [0])
    assert source.name(0) == r"gone/caf\udce9.png"
    with pytest.raises(OSError, match=r"image gone/caf\\udce9\.png cannot be read"):
        source.image(0)


# ---- image files


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I", "I;16", "F"])
@pytest.mark.parametrize("in_chans", [1, 3])
def test_every_mode_becomes_grey_or_colour(mode: str, in_chans: int, tmp_path: Path) -> None:
    names = {"CMYK": "tif", "YCbCr": "tif", "HSV": "npy", "PA": "npy", "F": "tif", "I": "tif"}
    extension = names.get(mode, "png")
    if extension == "npy":  # no file format holds it
        image = convert_image(Image.new("RGB", (3, 2)).convert("HSV" if mode == "HSV" else "P").convert(mode), in_chans)
    else:
        Image.new(mode, (3, 2), 1).save(tmp_path / f"a.{extension}")
        image = load_image(tmp_path / f"a.{extension}", in_chans)
    assert (image.mode, image.size) == ("L" if in_chans == 1 else "RGB", (3, 2))


def test_deep_pixels_are_scaled_not_clipped(tmp_path: Path) -> None:
    def grey(pixels: object, dtype: type, extension: str) -> list[int]:
        path = tmp_path / f"a.{extension}"
        Image.fromarray(np.array([pixels], dtype=dtype)).save(path)
        return [int(value) for value in np.asarray(load_image(path, 1))[0]]

    assert grey([0, 257, 32896, 65535], np.uint16, "png") == [0, 1, 128, 255]
    assert grey([0, 32896, 65535], np.int32, "tif") == [0, 128, 255]
    assert grey([0, 7, 255], np.int32, "tif") == [0, 7, 255]
    assert grey([-100, 0, 100], np.int32, "tif") == [0, 128, 255]
    assert grey([0, 0.5, 1], np.float32, "tif") == [0, 128, 255]
    assert grey([0, 7, 255], np.float32, "tif") == [0, 7, 255]


def test_transparent_pixels_become_white(tmp_path: Path) -> None:
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    image.putpixel((1, 0), (10, 20, 30, 255))
    image.save(tmp_path / "a.png")
    loaded = load_image(tmp_path / "a.png")
    assert [loaded.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (10, 20, 30)]
    palette = Image.new("P", (2, 1))
    palette.putpalette([1, 2, 3, 4, 5, 6])
    palette.putpixel((1, 0), 1)
    palette.save(tmp_path / "p.png", transparency=0)
    loaded = load_image(tmp_path / "p.png")
    assert [loaded.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (4, 5, 6)]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_turned_upright(orientation: int, tmp_path: Path) -> None:
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
    stored = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "phone.png", exif=exif)
    seen = {  # EXIF 2.3, section 4.6.4: where the stored row 0 and column 0 are seen
        1: pixels, 2: pixels[:, ::-1], 3: pixels[::-1, ::-1], 4: pixels[::-1],
        5: pixels.T, 6: pixels[::-1].T, 7: pixels[::-1, ::-1].T, 8: pixels.T[::-1],
    }[orientation]  # fmt: skip
    loaded = load_image(tmp_path / "phone.png", 1)
    assert np.array_equal(np.asarray(loaded), seen)
    assert np.array_equal(np.asarray(convert_image(loaded, 1)), seen)  # not turned twice
    with Image.open(tmp_path / "phone.png") as opened:
        assert upright_size(opened) == seen.shape


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_a_broken_exif_block_loses_no_image(tmp_path: Path) -> None:
    Image.new("RGB", (4, 3), "red").save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xffgarbage")
    assert load_image(tmp_path / "a.jpg").size == (4, 3)


def test_an_unreadable_image_raises_os_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = tmp_path / "text.png"
    text.write_text("no image")
    for path in (text, tmp_path / "missing.png", truncated_jpeg(tmp_path / "cut.jpg"), tmp_path):
        with pytest.raises(OSError, match=path.name):
            load_image(path)
    with pytest.raises(OSError, match="from memory"):
        load_image(io.BytesIO(b"no image"))
    whole = save(tmp_path / "whole.png", size=(100, 100))
    broken_png = tmp_path / "broken.png"  # Pillow raises a SyntaxError on a broken chunk
    broken_png.write_bytes(whole.read_bytes()[:8] + b"\0\0\0\1XXXX" + whole.read_bytes()[8:])
    with pytest.raises(OSError, match=r"broken\.png"):
        load_image(broken_png)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(OSError, match="decompression bomb"):
        load_image(whole)


# ---- fashion-mnist


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_fashion_mnist_from_idx_files(suffix: str, tmp_path: Path) -> None:
    pixels = np.arange(40 * 28 * 28).reshape(40, 28, 28) % 251
    write_idx(tmp_path / f"train-images-idx3-ubyte{suffix}", pixels)
    write_idx(tmp_path / f"train-labels-idx1-ubyte{suffix}", np.arange(40) % 10)
    data = open_data(DataConfig("fashion-mnist", data_dir=str(tmp_path), validation=0.25))
    train = source_of(data.train)
    assert (len(train), len(source_of(data.validation))) == (30, 10)
    assert (data.classes[9], data.img_size, data.in_chans, data.mirror) == ("Ankle boot", (28, 28), 1, True)
    assert isinstance(train, Subset)
    assert np.array_equal(np.asarray(train.image(0)), pixels[train.indices[0]])
    with pytest.raises(UserError, match="t10k-images-idx3-ubyte cannot be read"):  # only now the test split is opened
        len(source_of(data.test))


@pytest.mark.parametrize("raw", [b"", b"\0\0\x08\x01\0\0\0\x05abc", b"\x89PNG....", b"\0\0\x08\x03" + b"\xff" * 12])
def test_a_broken_idx_file_is_named(raw: bytes, tmp_path: Path) -> None:
    (tmp_path / "a-idx").write_bytes(raw)
    with pytest.raises(UserError, match=r"a-idx is broken"):
        read_idx(tmp_path / "a-idx")
    (tmp_path / "b.gz").write_bytes(gzip.compress(raw + b"0123456789")[:-6])
    with pytest.raises(UserError, match=r"b\.gz cannot be read"):
        read_idx(tmp_path / "b.gz")


def test_idx_files_that_are_no_pair(tmp_path: Path) -> None:
    write_idx(tmp_path / "train-images-idx3-ubyte", np.zeros((4, 28, 28)))
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.zeros(5))
    with pytest.raises(UserError, match="no pair"):
        open_data(DataConfig("fashion-mnist", data_dir=str(tmp_path)))
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.full(4, 10))
    with pytest.raises(UserError, match="class 10"):
        open_data(DataConfig("fashion-mnist", data_dir=str(tmp_path)))


def test_a_missing_fashion_mnist_says_where_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise RuntimeError("no\nnetwork")

    monkeypatch.setattr("torchvision.datasets.FashionMNIST", no_network)
    monkeypatch.setattr(data_module, "DEBIAN_FASHION_MNIST", tmp_path / "debian")
    with pytest.raises(UserError, match=r"\(no network\): apt-get install dataset-fashion-mnist.*--data-dir"):
        open_data(DataConfig("fashion-mnist", data_dir=str(tmp_path)))
