"""lora_np.images.sheet: the pixels, and the text in the file."""

import struct
import zlib

import numpy as np
import pytest

from lora_np.images import save_png
from lora_np.images.sheet import MARGIN, sheet


def chunks(path):
    """Return the chunks of a PNG, each with its kind; the checksums must be right."""
    content, found, place = path.read_bytes(), [], 8
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    while place < len(content):
        length, kind = struct.unpack_from(">I4s", content, place)
        body = content[place + 8 : place + 8 + length]
        (checksum,) = struct.unpack_from(">I", content, place + 8 + length)
        assert checksum == zlib.crc32(kind + body)
        found.append((kind, body))
        place += 12 + length
    return found


def texts(path):
    """Return the text chunks of a PNG by keyword."""
    found = {}
    for kind, body in chunks(path):
        keyword, _, text = body.partition(b"\0")
        if kind == b"tEXt":
            found[keyword.decode("latin-1")] = text.decode("latin-1")
        if kind == b"iTXt":  # two flags, a language and a translation come first
            found[keyword.decode("latin-1")] = text[2:].split(b"\0", 2)[2].decode("utf-8")
    return found


def test_ink_is_dark_on_white_and_every_image_has_its_place():
    images = np.full((3, 8, 8), -1.0, np.float32)
    images[0], images[2, 0, 0], images[1, 7, 7] = 1.0, 1.0, 0.0
    grey = sheet(images, columns=2, scale=3)
    side = 24 + MARGIN
    assert grey.shape == (2 * side + MARGIN, 2 * side + MARGIN) and grey.dtype == np.uint8
    expected = np.full(grey.shape, 255)
    expected[MARGIN : MARGIN + 24, MARGIN : MARGIN + 24] = 0  # the first is ink
    expected[side + MARGIN : side + MARGIN + 3, MARGIN : MARGIN + 3] = 0  # a pixel of the third
    expected[MARGIN + 21 : MARGIN + 24, side + MARGIN + 21 : side + MARGIN + 24] = 128  # half ink
    np.testing.assert_array_equal(grey, expected)


def test_the_file_holds_the_pixels_and_the_text(tmp_path, rng):
    images = rng.uniform(-1, 1, (4, 8, 8)).astype(np.float32)
    about = {"prompt": "serif R", "seed": "3", "Software": "lora_np x", "adapters": "é ← ß"}
    save_png(tmp_path / "a.png", images, 4, about, scale=2)
    assert texts(tmp_path / "a.png") == about
    parts = chunks(tmp_path / "a.png")
    width, height = struct.unpack_from(">II", dict(parts)[b"IHDR"])
    expected = sheet(images, 4, 2)
    assert (height, width) == expected.shape
    from matplotlib.image import imread

    np.testing.assert_array_equal(np.rint(imread(tmp_path / "a.png")[..., 0] * 255), expected)


def test_a_picture_that_is_not_finished_leaves_the_old_one(tmp_path, monkeypatch):
    from matplotlib import image

    save_png(tmp_path / "a.png", np.ones((1, 8, 8)), 1, {})
    before = (tmp_path / "a.png").read_bytes()

    def half(path, *pixels, **options):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(image, "imsave", half)
    with pytest.raises(KeyboardInterrupt):
        save_png(tmp_path / "a.png", -np.ones((1, 8, 8)), 1, {})
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    assert (tmp_path / "a.png").read_bytes() == before


@pytest.mark.parametrize(
    "images, columns, said",
    [
        (np.full((1, 8, 8), 2.0), 1, "images reach from 2 to 2"),
        (np.ones((8, 8)), 1, r"expected \(n, size, size\)"),
        (np.ones((1, 8, 8)), 0, "columns = 0"),
    ],
)
def test_what_is_no_sheet_is_refused(images, columns, said):
    with pytest.raises(ValueError, match=said):
        sheet(images, columns)
