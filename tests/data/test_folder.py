"""Picture folders: what is read, converted, refused. One test a policy of docs/DATA.md."""

import io
import os
import zlib

import numpy as np
import pytest
from data_helpers import Child, colour_picture
from PIL import Image

from fastue.core.errors import DataError, UsageError
from fastue.data import pictures
from fastue.data.sources import open_dataset


def pixels(dataset, name):
    return dataset.images[dataset.ids.index(name)].permute(1, 2, 0).numpy()


def notes(dataset):
    return "\n".join(dataset.notes)


def test_a_plain_folder(folder):
    data = open_dataset(folder)
    assert data.ids == [f"{c}/{k}.png" for c in ("cat", "dog") for k in range(3)]
    assert (
        data.classes == ["cat", "dog"]
        and data.labels.tolist() == [0, 0, 0, 1, 1, 1]
        and data.notes == []
    )
    for name in data.ids:
        assert np.array_equal(pixels(data, name), np.asarray(Image.open(folder / name)))


@pytest.mark.parametrize("ending", ["png", "bmp", "webp", "jpg", "JPEG", "WEBP"])
def test_formats(folder, ending):
    options = {"lossless": True} if ending.lower() == "webp" else {}
    colour_picture(5).save(folder / "cat" / f"x.{ending}", **options)
    read = pixels(open_dataset(folder), f"cat/x.{ending}")
    decoded = Image.open(folder / "cat" / f"x.{ending}").convert("RGB")
    assert np.array_equal(read, np.asarray(decoded))
    if ending.lower() not in ("jpg", "jpeg"):
        assert np.array_equal(read, np.asarray(colour_picture(5)))


def test_sub_folders_and_linked_files_belong_to_their_class(folder, tmp_path):
    (folder / "cat" / "more").mkdir()
    colour_picture(7).save(folder / "cat" / "more" / "x.png")
    (folder / "dog" / "link.png").symlink_to(folder / "cat" / "0.png")
    data = open_dataset(folder)
    assert (
        data.labels[data.ids.index("cat/more/x.png")] == 0
        and data.labels[data.ids.index("dog/link.png")] == 1
    )


def encoded(picture, form, **options):
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


BROKEN = {
    "empty.png": b"",
    "text.jpg": b"these are words, not pixels",
    "cut.png": encoded(colour_picture(1, 64, 64), "PNG")[:3000],
    "cut.jpg": encoded(colour_picture(1, 64, 64), "JPEG", quality=95)[:1500],
    "cut.bmp": encoded(colour_picture(1, 64, 64), "BMP")[:3000],
    "cut.webp": encoded(colour_picture(1, 64, 64), "WEBP", lossless=True)[:3000],
    "header.png": encoded(colour_picture(1), "PNG")[:20],
    "gif.png": encoded(colour_picture(1).convert("P"), "GIF"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_picture_stops_or_is_left_out_by_name(folder, name):
    (folder / "dog" / name).write_bytes(BROKEN[name])
    with pytest.raises(
        DataError, match=rf"(?s)1 of 7 pictures cannot be read.*dog/{name}: .*--skip-bad"
    ):
        open_dataset(folder)
    data = open_dataset(folder, on_error="skip")
    assert len(data) == 6 and f"dog/{name}" not in data.ids
    assert f"1 unreadable pictures left out: dog/{name} (" in notes(data)
    assert np.array_equal(
        pixels(data, "dog/2.png"), np.asarray(Image.open(folder / "dog" / "2.png"))
    )


def test_a_flipped_bit_in_a_png_is_noticed(folder):
    data = bytearray((folder / "cat" / "1.png").read_bytes())
    data[len(data) // 2] ^= 0x10
    (folder / "cat" / "1.png").write_bytes(bytes(data))
    with pytest.raises(DataError, match="cat/1.png: damaged"):
        open_dataset(folder)


def test_all_pictures_broken_stops_even_when_skipping(folder):
    for path in folder.rglob("*.png"):
        path.write_bytes(b"broken")
    with pytest.raises(DataError, match="6 of 6"):
        open_dataset(folder, on_error="skip")


def test_a_long_list_is_shortened(folder):
    for number in range(30):
        (folder / "cat" / f"bad{number:02d}.png").write_bytes(b"")
    with pytest.raises(DataError) as error:
        open_dataset(folder)
    assert (
        "bad19" in str(error.value)
        and "bad20" not in str(error.value)
        and "and 10 more" in str(error.value)
    )


def test_dangling_link(folder):
    (folder / "cat" / "gone.png").symlink_to(folder / "nowhere.png")
    with pytest.raises(DataError, match="cat/gone.png: no such file"):
        open_dataset(folder)


def test_cmyk(folder):
    colour_picture(3, 8, 8).convert("CMYK").save(folder / "cat" / "x.jpg")
    data = open_dataset(folder)
    assert "CMYK converted to RGB: cat/x.jpg" in notes(data)
    assert np.array_equal(
        pixels(data, "cat/x.jpg"), np.asarray(Image.open(folder / "cat/x.jpg").convert("RGB"))
    )


def test_16_bit_gray_is_scaled_not_cut(folder):
    levels = np.array([[0, 257, 128, 129, 65535, 32768, 511, 60000]] * 8, dtype=np.uint16)
    Image.fromarray(levels).save(folder / "cat" / "x.png")
    data = open_dataset(folder)
    assert "16-bit reduced to 8-bit: cat/x.png" in notes(data)
    assert pixels(data, "cat/x.png")[0, :, 0].tolist() == [0, 1, 0, 1, 255, 128, 2, 233]


def png_16_bit_rgb(levels):
    def chunk(kind, body):
        return (
            len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")
        )

    h, w = levels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in levels)
    head = w.to_bytes(4, "big") + h.to_bytes(4, "big") + bytes([16, 2, 0, 0, 0])
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def test_16_bit_rgb(folder):
    levels = np.full((8, 8, 3), 0x4080, dtype=np.uint16)
    (folder / "cat" / "x.png").write_bytes(png_16_bit_rgb(levels))
    data = open_dataset(folder)
    assert "16-bit reduced to 8-bit: cat/x.png" in notes(data)
    assert set(pixels(data, "cat/x.png").ravel().tolist()) == {0x40}


def test_palette(folder):
    picture = colour_picture(3).quantize(16)
    picture.save(folder / "cat" / "x.png")
    data = open_dataset(folder)
    assert "palette converted to RGB: cat/x.png" in notes(data)
    assert np.array_equal(pixels(data, "cat/x.png"), np.asarray(picture.convert("RGB")))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_laid_over_white(folder, mode):
    picture = Image.new("RGBA", (8, 8), (200, 200, 200, 255))
    picture.paste((10, 10, 10, 0), (0, 0, 4, 8))
    if mode == "P":
        picture = Image.new("P", (8, 8), 1)
        picture.putpalette([10, 10, 10, 200, 200, 200])
        picture.paste(0, (0, 0, 4, 8))
        picture.save(folder / "cat" / "x.png", transparency=0)
    else:
        picture.convert(mode).save(folder / "cat" / "x.png")
    data = open_dataset(folder)
    assert "transparency laid over white: cat/x.png" in notes(data)
    read = pixels(data, "cat/x.png")
    assert (read[:, :4] == 255).all() and (read[:, 4:] == 200).all()


def test_gray_among_colour_becomes_rgb_whichever_comes_first(folder):
    for name in ("cat/0.png", "dog/2.png"):
        colour_picture(1).convert("L").save(folder / name)
    data = open_dataset(folder)
    assert data.shape == (3, 8, 8)
    assert "2 pictures: gray converted to RGB: cat/0.png, dog/2.png" in notes(data)
    gray = pixels(data, "cat/0.png")
    assert (gray == np.asarray(Image.open(folder / "cat/0.png"))[:, :, None]).all()


def test_all_gray_stays_one_channel(folder):
    for path in folder.rglob("*.png"):
        Image.open(path).convert("L").save(path)
    data = open_dataset(folder)
    assert data.shape == (1, 8, 8) and data.notes == []


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(folder, orientation):
    picture = colour_picture(4, 8, 8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture.save(folder / "cat" / "x.png", exif=exif)
    turned = pixels(open_dataset(folder), "cat/x.png")
    upright = {
        1: lambda p: p,
        2: lambda p: p[:, ::-1],
        3: lambda p: p[::-1, ::-1],
        4: lambda p: p[::-1],
        5: lambda p: p.transpose(1, 0, 2),
        6: lambda p: np.rot90(p, -1),
        7: lambda p: p[::-1, ::-1].transpose(1, 0, 2),
        8: lambda p: np.rot90(p),
    }[orientation](np.asarray(picture))
    assert np.array_equal(turned, upright)
    assert ("EXIF" in notes(open_dataset(folder))) == (orientation != 1)


@pytest.mark.parametrize("ending", ["png", "webp"])
def test_animated_gives_its_first_frame(folder, ending):
    frames = [colour_picture(seed) for seed in (50, 51, 52)]
    frames[0].save(
        folder / "cat" / f"x.{ending}", save_all=True, append_images=frames[1:], lossless=True
    )
    data = open_dataset(folder)
    assert f"animated, first frame taken: cat/x.{ending}" in notes(data)
    assert np.array_equal(pixels(data, f"cat/x.{ending}"), np.asarray(frames[0]))


def test_mixed_sizes_stop_and_name_them(folder):
    colour_picture(9, 12, 8).save(folder / "dog" / "wide.png")
    colour_picture(9, 1, 1).save(folder / "dog" / "dot.png")
    with pytest.raises(
        DataError, match=r"3 different sizes \(8x8: 6 .*dog/dot.png.*dog/wide.png.*--size S"
    ):
        open_dataset(folder)


def test_size_resizes_the_shorter_side_and_cuts_the_centre(folder):
    wide = np.zeros((16, 40, 3), np.uint8)
    wide[:, 12:28] = 255  # exactly the centre square
    Image.fromarray(wide).save(folder / "cat" / "wide.png")
    Image.fromarray(wide.transpose(1, 0, 2)).save(folder / "cat" / "tall.png")
    colour_picture(9, 1, 1).save(folder / "dog" / "dot.png")
    data = open_dataset(folder, size=8)
    assert data.shape == (3, 8, 8)
    for name in ("cat/wide.png", "cat/tall.png"):
        assert (pixels(data, name)[1:-1, 1:-1] == 255).all()
    assert len(np.unique(pixels(data, "dog/dot.png").reshape(-1, 3), axis=0)) == 1
    assert np.array_equal(pixels(data, "cat/0.png"), np.asarray(Image.open(folder / "cat/0.png")))


def test_one_pixel_pictures_of_one_size_are_read(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        colour_picture(1, 1, 1).save(tmp_path / name / "x.png")
    assert open_dataset(tmp_path).shape == (3, 1, 1)


def test_an_empty_class_stops_or_is_left_out(folder):
    (folder / "bird").mkdir()
    with pytest.raises(DataError, match="class folders without a picture: bird"):
        open_dataset(folder)
    data = open_dataset(folder, on_error="skip")
    assert data.classes == ["cat", "dog"] and data.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert "1 class folders without a picture left out: bird" in notes(data)


def test_a_single_class_stops(folder):
    for path in (folder / "dog").iterdir():
        path.unlink()
    (folder / "dog").rmdir()
    with pytest.raises(DataError, match=r"single class \(cat\)"):
        open_dataset(folder)


def test_other_files_are_left_out_with_a_note_and_hidden_ones_silently(folder):
    (folder / "cat" / "Thumbs.db").write_bytes(b"x")
    (folder / "readme.txt").write_text("x")
    (folder / "dog" / "anim.gif").write_bytes(BROKEN["gif.png"])
    (folder / ".DS_Store").write_bytes(b"x")
    (folder / ".cache").mkdir()
    (folder / "cat" / ".hidden.png").write_bytes(b"x")
    data = open_dataset(folder)
    assert len(data) == 6 and len(data.notes) == 1
    for name in ("3 files", "cat/Thumbs.db", "readme.txt", "dog/anim.gif"):
        assert name in data.notes[0]


def test_pictures_without_a_class_stop(folder):
    colour_picture(1).save(folder / "loose.png")
    with pytest.raises(DataError, match=r"1 pictures lie outside.*loose.png.*--labels"):
        open_dataset(folder)


def test_a_link_to_a_folder_above_is_not_followed(folder):
    (folder / "cat" / "again").symlink_to(folder)
    (folder / "dog" / "self").symlink_to(folder / "dog")
    data = open_dataset(folder)
    assert len(data) == 6
    assert "cat/again" in notes(data) and "dog/self" in notes(data)


def test_huge_pictures_are_refused_before_they_are_decoded(folder, monkeypatch):
    monkeypatch.setattr(pictures, "MAX_PIXELS", 100)
    colour_picture(1, 20, 20).save(folder / "cat" / "big.png")
    with pytest.raises(DataError, match="cat/big.png: 20x20 is more than 100 pixels"):
        open_dataset(folder)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_decompression_bomb(folder):
    side = 60_000  # a few bytes that claim 3.6 billion pixels
    bomb = bytearray(png_16_bit_rgb(np.zeros((1, 1, 3), np.uint16)))
    bomb[16:24] = side.to_bytes(4, "big") * 2
    bomb[29:33] = zlib.crc32(bytes(bomb[12:29])).to_bytes(4, "big")
    (folder / "cat" / "bomb.png").write_bytes(bytes(bomb))
    with pytest.raises(DataError, match="cat/bomb.png: more than"):
        open_dataset(folder)


def test_more_than_memory_stops_before_reading(folder, monkeypatch):
    monkeypatch.setattr(os, "sysconf", lambda name: 10)
    with pytest.raises(DataError, match=r"in memory and this machine has.*--size"):
        open_dataset(folder)


def test_duplicate_stems_are_two_pictures(folder):
    colour_picture(8).save(folder / "cat" / "0.bmp")
    assert {"cat/0.png", "cat/0.bmp"} <= set(open_dataset(folder).ids)


def test_a_name_that_is_not_utf8_stops(folder):
    with open(os.fsencode(folder / "cat") + b"/\xff.png", "wb") as file:
        file.write((folder / "cat" / "0.png").read_bytes())
    with pytest.raises(DataError, match="not valid UTF-8"):
        open_dataset(folder)


def test_unicode_and_odd_names_are_kept(folder):
    for name in ("été 1.png", "a\nb.png", "..png", "💾.png"):
        if not name.startswith("."):
            colour_picture(1).save(folder / "cat" / name)
    assert {"cat/été 1.png", "cat/a\nb.png", "cat/💾.png"} <= set(open_dataset(folder).ids)


@pytest.mark.parametrize("what", ["file", "folder"])
def test_no_permission(folder, what):
    # A child gives up root, for which nothing is forbidden.
    (folder / "cat" / "0.png" if what == "file" else folder / "cat").chmod(0)
    for parent in folder.parents:
        if os.stat(parent).st_uid == os.getuid() and str(parent).startswith("/tmp/"):
            parent.chmod(0o755)

    def work(say):
        if os.getuid() == 0:
            os.setgid(65534)
            os.setuid(65534)
        try:
            open_dataset(folder)
        except DataError as error:
            say(error)

    message = Child(work).wait()
    (folder / "cat").chmod(0o755)
    expected = (
        "cat/0.png: no permission to read it"
        if what == "file"
        else "cat: no permission to list this folder"
    )
    assert expected in message


def test_missing_and_wrong_sources(tmp_path, folder):
    with pytest.raises(DataError, match="no such file or folder"):
        open_dataset(tmp_path / "nowhere")
    with pytest.raises(DataError, match="not a folder of pictures"):
        open_dataset(folder / "cat" / "0.png")
    (tmp_path / "hollow").mkdir()
    with pytest.raises(DataError, match="no class folders"):
        open_dataset(tmp_path / "hollow")
    (tmp_path / "hollow" / "a").mkdir()
    with pytest.raises(DataError, match="no picture found"):
        open_dataset(tmp_path / "hollow")
    with pytest.raises(UsageError, match="on_error"):
        open_dataset(folder, on_error="ignore")
    with pytest.raises(UsageError, match="--size"):
        open_dataset(folder, size=0)


class TestTable:
    """--labels: a CSV table for a folder that is not sorted into classes."""

    @pytest.fixture
    def flat(self, tmp_path):
        root = tmp_path / "flat"
        root.mkdir()
        for number in range(4):
            colour_picture(number).save(root / f"{number}.png")
        return root

    def write(self, tmp_path, text):
        (tmp_path / "table.csv").write_text(text)
        return tmp_path / "table.csv"

    def test_classes_come_from_the_table(self, flat, tmp_path):
        table = self.write(tmp_path, "file,class\n0.png,dog\n1.png,cat\n2.png,dog\n3.png,cat\n")
        data = open_dataset(flat, labels=table)
        assert data.ids == ["0.png", "1.png", "2.png", "3.png"]
        assert data.classes == ["cat", "dog"] and data.labels.tolist() == [1, 0, 1, 0]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("0.png,a\n1.png,b\n2.png,a\n", "1 pictures have no label in the table: 3.png"),
            ("0.png,a\n1.png,b\n2.png,a\n3.png,b\n4.png,a\n", "not there: 4.png"),
            ("0.png,a\n1.png,b\n2.png\n3.png,b\n", "line 3: expected"),
            ("0.png,a\n1.png,b\n2.png,\n3.png,b\n", "line 3: expected"),
            ("0.png,a\n1.png,b\n1.png,a\n3.png,b\n", "a second label for 1.png"),
            ("", "empty"),
        ],
    )
    def test_tables_that_do_not_fit(self, flat, tmp_path, text, message):
        with pytest.raises(DataError, match=message):
            open_dataset(flat, labels=self.write(tmp_path, text))

    def test_missing_table(self, flat, tmp_path):
        with pytest.raises(DataError, match="cannot be read"):
            open_dataset(flat, labels=tmp_path / "none.csv")
