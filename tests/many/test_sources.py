"""Each kind of source: its pictures, and one sentence for what is wrong with it."""

from __future__ import annotations

import io
import os
import pickle

import numpy as np
import pytest
from many_photos import jpeg, web_dataset, write_tar
from PIL import Image

from sfp.errors import SFPError
from sfp.images import read_image
from sfp.many.sources import Sources


def walk(*given, **more):
    """Items, and sentences."""
    found = list(Sources([str(each) for each in given], **more))
    errors = [each for each in found if isinstance(each, SFPError)]
    return [each for each in found if not isinstance(each, SFPError)], [str(e) for e in errors]


def names(*given, **more):
    items, errors = walk(*given, **more)
    assert not errors
    return [item.name for item in items]


@pytest.fixture
def folder(tmp_path):
    for name in ("a.jpg", "b.PNG", "in/a.jpg", ".hidden.jpg", "in/.h/c.jpg", "note.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(jpeg())
    return tmp_path


class TestFolders:
    def test_subfolders_and_no_hidden_files(self, folder):
        assert names(folder) == ["a.jpg", "b.PNG", "in/a.jpg"]
        assert names(folder / "in") == ["a.jpg"]

    def test_items_know_their_files(self, folder):
        (item, *_), _ = walk(folder, out=folder / "out")
        assert item.key == "../a.jpg" and item.stem == "a" and item.path == str(folder / "a.jpg")
        assert item.bytes == len(jpeg())
        assert item.modified_ns == (folder / "a.jpg").stat().st_mtime_ns
        assert read_image(pickle.loads(pickle.dumps(item))).shape == (32, 48, 3)

    def test_linked_folders_are_walked_but_not_in_circles(self, folder):
        (folder / "in/up").symlink_to(folder)
        (folder / "other").symlink_to(folder / "in")
        assert names(folder) == ["a.jpg", "b.PNG", "in/a.jpg", "other/a.jpg"]

    def test_results_are_left_out(self, folder):
        assert names(folder, is_result=lambda file: file.endswith("b.PNG")) == ["a.jpg", "in/a.jpg"]

    def test_a_folder_without_pictures_and_one_that_is_not_there(self, tmp_path):
        (tmp_path / "empty").mkdir()
        items, errors = walk(tmp_path / "empty", tmp_path / "none")
        assert not items
        assert f"The folder {tmp_path / 'empty'} has no pictures" in errors[0]
        assert errors[1] == f"There is no image file or folder {tmp_path / 'none'}; check the path."

    def test_a_folder_of_shards(self, tmp_path):
        write_tar(tmp_path / "0.tar", web_dataset())
        (error,) = walk(tmp_path)[1]
        assert f"it has 1 files .tar: name those, as {tmp_path}/*.tar" in error

    def test_the_others_go_on(self, folder, tmp_path):
        items, errors = walk(tmp_path / "none.jpg", folder / "in")
        assert [item.name for item in items] == ["a.jpg"] and len(errors) == 1


class TestLists:
    def test_paths_are_relative_to_the_list(self, folder):
        (folder / "list.txt").write_text(f"a.jpg\n\n  in/a.jpg\n{folder}/b.PNG\n")
        assert names(folder / "list.txt") == ["a.jpg", "in/a.jpg", "b.PNG"]

    def test_a_list_from_the_standard_input(self, folder, monkeypatch):
        monkeypatch.chdir(folder)
        monkeypatch.setattr("sys.stdin", io.StringIO("in/a.jpg\na.jpg\n"))
        sources = Sources(["-"])
        for _ in range(2):  # it is walked twice
            assert [item.name for item in sources] == ["in/a.jpg", "a.jpg"]

    def test_missing_files_are_named_and_the_others_go_on(self, folder):
        (folder / "list.txt").write_text("a.jpg\nnone.jpg\nnone.tar\nin/a.jpg")
        items, errors = walk(folder / "list.txt")
        assert [item.name for item in items] == ["a.jpg", "in/a.jpg"]
        assert errors == [
            f"There is no file {folder}/{name}, which {folder}/list.txt lists; check it."
            for name in ("none.jpg", "none.tar")
        ]

    @pytest.mark.parametrize(
        ("content", "words"),
        [(b"\n", "names no picture"), (b"\xff\xd8\xff", "is no list in UTF-8"), (None, "no list")],
    )
    def test_no_list(self, content, words, tmp_path):
        if content is not None:
            (tmp_path / "list.txt").write_bytes(content)
        ((), (error,)) = walk(tmp_path / "list.txt")
        assert words in error and "list.txt" in error


def test_globs(folder):
    assert names(f"{folder}/*.jpg") == ["a.jpg"]
    assert names(f"{folder}/**/*.jpg") == ["a.jpg", "in/a.jpg"]
    assert walk(f"{folder}/*.webp")[1] == [
        f"No file is named as {folder}/*.webp; check the pattern."
    ]


@pytest.mark.parametrize(("ending", "mode"), [("tar", "w"), ("tar.gz", "w:gz"), ("tgz", "w:gz")])
class TestTars:
    def test_a_picture_of_each_sample(self, ending, mode, tmp_path):
        more = {
            "sub/x.seg.png": b"",
            "sub/x.jpg": jpeg(7),
            "._0000.jpg": b"",
            "y.txt": b"",
            "../up.jpg": jpeg(9),
        }
        file = write_tar(tmp_path / f"s.{ending}", {**web_dataset(2), **more}, mode)
        items, errors = walk(file, out=tmp_path)
        assert not errors
        assert [item.name for item in items] == [
            "s/0000.jpg",
            "s/0001.jpg",
            "s/sub/x.jpg",
            "s/up.jpg",
        ]
        assert items[2].key == f"s.{ending}#sub/x.jpg" and items[2].path == ""
        for number, item in zip(
            (1, 0, 9, 7), (items[1], items[0], items[3], items[2]), strict=True
        ):
            assert abs(int(item.read_pixels()[0, 0, 0]) - number) < 3  # in any order

    def test_one_that_is_cut_short(self, ending, mode, tmp_path):
        whole = write_tar(tmp_path / "whole", web_dataset(40), mode).read_bytes()
        file = tmp_path / f"s.{ending}"
        counts = []
        for share in (0.3, 0.5, 0.8):
            file.write_bytes(whole[: int(share * len(whole))])
            items, (error,) = walk(file)
            assert f"{file} is cut short or damaged after {len(items)} pictures" in error
            for item in items:
                item.read_pixels()
            counts.append(len(items))
        assert counts == sorted(counts) and counts[0] < counts[-1] < 40

    def test_no_tar(self, ending, mode, tmp_path):
        file = tmp_path / f"s.{ending}"
        assert walk(file)[1] == [f"There is no file {file}; check the path."]
        file.write_bytes(b"no tar" * 1000)
        assert f"{file} is cut short or damaged after 0 pictures" in walk(file)[1][0]
        write_tar(file, {"a.json": b"{}"}, mode)
        assert f"{file} has no pictures" in walk(file)[1][0]

    def test_a_broken_picture_in_it(self, ending, mode, tmp_path):
        file = write_tar(tmp_path / f"s.{ending}", {"a.jpg": b"no", "b.jpg": jpeg()}, mode)
        (broken, sound), _ = walk(file)
        with pytest.raises(SFPError, match=r"s/a.jpg in .* can't be read as an image"):
            broken.read_pixels()
        assert sound.read_pixels().shape == (32, 48, 3)


def test_a_tar_whose_end_is_missing(tmp_path):
    file = write_tar(tmp_path / "s.tar", web_dataset(2))
    file.write_bytes(file.read_bytes().rstrip(b"\0") + bytes(512 - 2))  # the last padding alone
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 512 * 512])
    items, (error,) = walk(file)
    assert len(items) == 2 and "its end is missing" in error


def write_video(file, frames=50, size=(64, 48)):
    av = pytest.importorskip("av")
    with av.open(str(file), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.gop_size = 8
        stream.bit_rate = 4_000_000
        for number in range(frames):
            pixels = np.full((size[1], size[0], 3), 5 * number % 255, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return file


class TestVideos:
    def test_every_nth_frame_in_any_order(self, tmp_path):
        file = write_video(tmp_path / "v.mp4")
        items, errors = walk(file, every=7, out=tmp_path)
        assert not errors and [item.name for item in items] == [
            f"v/{number:06d}.png" for number in range(0, 50, 7)
        ]
        assert items[1].key == "v.mp4#7" and items[1].lane == str(file)
        for item in [*items, *items[::-1], items[3], items[3]]:
            pixels = item.read_pixels()
            assert pixels.shape == (48, 64, 3)
            assert abs(float(pixels.mean()) - 5 * item.number) < 3
        assert len(walk(file)[0]) == 50

    @pytest.mark.parametrize("ending", ["mp4", "mkv", "avi"])
    def test_one_that_is_cut_short(self, ending, tmp_path):
        file = write_video(tmp_path / f"v.{ending}", 200)
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        items, errors = walk(file)
        assert len(items) < 200 and len(errors) == (
            ending != "mkv"
        )  # it doesn't say how long it is
        assert all(
            str(file) in error and ("whole file" in error or "cut" in error) for error in errors
        )

    def test_no_video(self, tmp_path):
        pytest.importorskip("av")
        file = tmp_path / "v.mp4"
        assert walk(file)[1] == [f"There is no file {file}; check the path."]
        file.write_bytes(b"no video")
        assert f"{file} can't be read as a video" in walk(file)[1][0]

    def test_no_frame_at_all(self):
        with pytest.raises(SFPError, match="--every 0 must be at least 1"):
            Sources(["v.mp4"], every=0)


class TestTables:
    @pytest.fixture
    def write(self, tmp_path):
        arrow = pytest.importorskip("pyarrow")
        import pyarrow.parquet as parquet

        def write(name="t.parquet", **columns):
            parquet.write_table(arrow.table(columns), tmp_path / name, row_group_size=2)
            return tmp_path / name

        return write

    def test_bytes_structs_and_paths(self, write, tmp_path):
        pictures = [jpeg(n) for n in (10, 60, 120)]
        items, errors = walk(write(jpg=pictures, key=["a", "b/c.jpg", "../d"]), out=tmp_path)
        assert not errors and [item.name for item in items] == [
            "t/a.png",
            "t/b/c.jpg",
            "t/d.png",
        ]
        for item, number in zip(items[::-1], (120, 60, 10), strict=True):
            assert abs(int(item.read_pixels()[0, 0, 0]) - number) < 3
        structs = [{"bytes": data, "path": f"{n}.jpg"} for n, data in enumerate(pictures)]
        items, _ = walk(write(image=structs, label=[1, 2, 3]))
        assert [item.name for item in items] == ["t/0.jpg", "t/1.jpg", "t/2.jpg"]
        assert items[2].read_pixels().shape == (32, 48, 3)
        (tmp_path / "x.jpg").write_bytes(jpeg())
        items, errors = walk(write(file_name=["x.jpg", "none.jpg"]))
        assert [item.name for item in items] == ["t/x.jpg"] and "none.jpg" in errors[0]

    def test_a_row_without_a_picture(self, write):
        items, _ = walk(write(jpg=[jpeg(), None]))
        items[0].read_pixels()
        with pytest.raises(SFPError, match="has no picture"):
            items[1].read_pixels()

    def test_no_table(self, write, tmp_path):
        assert "none is of bytes or paths" in walk(write(x=[1]))[1][0]
        file = tmp_path / "no.parquet"
        assert "There is no file" in walk(file)[1][0]
        file.write_bytes(b"PAR1 no")
        assert f"{file} can't be read as a Parquet table" in walk(file)[1][0]


def test_nothing_is_given():
    with pytest.raises(SFPError, match="No pictures are named"):
        Sources([])


def test_an_unreadable_file(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"no")
    ((item,), errors) = walk(tmp_path)
    assert not errors
    with pytest.raises(SFPError, match=r"a.jpg can't be read as an image"):
        item.read_pixels()
    os.unlink(tmp_path / "a.jpg")
    with pytest.raises(SFPError, match=r"There is no image file"):
        item.read_pixels()


def test_the_segmenter_takes_items(tmp_path, toyland_clip):
    import sfp

    file = write_tar(tmp_path / "s.tar", {"a.jpg": jpeg(200), "b.jpg": b"no"})
    segmenter = sfp.Segmenter("CLIP", toyland_clip, window=0, short_side=112)
    found = list(segmenter.many(Sources([str(file)]), ["sky", "sea"], yield_errors=True))
    expected = segmenter(Image.open(io.BytesIO(jpeg(200))), ["sky", "sea"])
    assert np.array_equal(found[0].labels, expected.labels)
    assert isinstance(found[1], SFPError) and "b.jpg" in str(found[1])
