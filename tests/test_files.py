"""Files whole or not at all, also on full disks; folders that one process at a time may use."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from matplotlib.figure import Figure
from PIL import Image

from sfp.datasets import toyland
from sfp.datasets.preparation.download import Archive, fetch
from sfp.datasets.preparation.steps import Plan, Step, carry_out, write_labels
from sfp.errors import SFPError
from sfp.evaluation.counts import CountStore
from sfp.evaluation.grid import save_group
from sfp.files import make_folder, only_one, save_figure, sweep, whole_file
from sfp.result import Segmentation


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


class TestWholeFile:
    def test_it_appears_at_the_end(self, tmp_path):
        with whole_file(tmp_path / "a.json") as partial:
            partial.write_text("new")
            assert partial.parent == tmp_path and partial.suffix == ".json"
            assert not (tmp_path / "a.json").exists()
        assert files(tmp_path) == ["a.json"] and (tmp_path / "a.json").read_text() == "new"

    @pytest.mark.parametrize(
        "error",
        [RuntimeError("x"), KeyboardInterrupt(), SystemExit(1), ValueError("x"), SFPError("x")],
    )
    def test_an_exception_leaves_the_old_file_and_no_partial(self, error, tmp_path):
        (tmp_path / "a.json").write_text("old")
        with pytest.raises(type(error)) as caught, whole_file(tmp_path / "a.json") as partial:
            partial.write_text("half")
            raise error
        assert caught.value is error and files(tmp_path) == ["a.json"]
        assert (tmp_path / "a.json").read_text() == "old"

    @pytest.mark.parametrize(
        ("path", "advice", "words"),
        [
            (
                "none/a",
                None,
                r"none/a can't .* \(No such file or directory\); make its folder first",
            ),
            ("file/a", None, r"can't be written \(Not a directory\); make its folder first"),
            ("none/a", "do this", r"can't be written .*; do this"),
            ("folder", None, "folder can't be written"),
        ],
    )
    def test_errors_have_the_reason_and_what_to_do(self, path, advice, words, tmp_path):
        (tmp_path / "file").write_text("")
        (tmp_path / "folder").mkdir()
        with (
            pytest.raises(SFPError, match=words),
            whole_file(tmp_path / path, advice) as partial,
        ):
            partial.write_text("x")
        assert files(tmp_path) == ["file"]

    def test_errors_of_other_files_pass_through(self, tmp_path):
        with pytest.raises(FileNotFoundError), whole_file(tmp_path / "a") as partial:
            partial.write_bytes((tmp_path / "source").read_bytes())
        with pytest.raises(Image.UnidentifiedImageError), whole_file(tmp_path / "a"):
            Image.open(Path(__file__))

    def test_two_writers_of_one_file_do_not_meet(self, tmp_path):
        with whole_file(tmp_path / "a") as first, whole_file(tmp_path / "a") as second:
            assert first != second
            first.write_text("1"), second.write_text("2")
        assert (tmp_path / "a").read_text() == "1"  # the outer one ends last

    def test_a_long_name(self, tmp_path):
        with whole_file(tmp_path / f"{'ä' * 125}.png") as partial:
            partial.write_text("x")
        assert len(files(tmp_path)) == 1

    def test_what_the_dead_left_is_swept_and_the_living_and_far_are_not(self, tmp_path):
        process = subprocess.Popen(["true"])
        process.wait()
        (tmp_path / "sub").mkdir()
        here = socket.gethostname()
        owners = (f"{here}-{process.pid}", f"{here}-{os.getpid()}", f"elsewhere-{process.pid}")
        for folder in (tmp_path, tmp_path / "sub"):
            for owner in owners:
                (folder / f".a.{owner}-0123abcd.partial.png").write_text("x")
        (tmp_path / "archive.tar.partial").write_text("x")  # a download's, which goes on
        sweep(tmp_path)
        left = [
            f".a.{here}-{os.getpid()}-0123abcd.partial.png",
            f".a.elsewhere-{process.pid}-0123abcd.partial.png",
        ]
        assert files(tmp_path) == sorted(
            [*left, *(f"sub/{name}" for name in left), "archive.tar.partial"]
        )

    def test_no_dataset_takes_a_partial_for_an_image(self, tmp_path):
        """mmseg lists whole folders of images for datasets without a list."""
        from mmengine.registry import init_default_scope
        from mmseg.registry import DATASETS

        init_default_scope("mmseg")
        for folder in ("images", "labels"):
            (tmp_path / folder).mkdir()
        for name in ("images/a.jpg", "labels/a.png"):
            Image.new("L", (4, 4)).save(tmp_path / name)
        with whole_file(tmp_path / "images/b.jpg") as partial:
            Image.new("RGB", (4, 4)).save(partial)
            config = dict(type="ADE20KDataset", data_root=str(tmp_path), pipeline=[])
            config["data_prefix"] = dict(img_path="images", seg_map_path="labels")
            assert len(DATASETS.build(config)) == 1


def result() -> Segmentation:
    generator = np.random.default_rng(0)
    image = generator.integers(0, 256, (300, 300, 3), dtype=np.uint8)
    scores = generator.random((2, 300, 300), dtype=np.float32)
    labels = (scores[0] > scores[1]).astype(np.int64)
    return Segmentation(image=image, labels=labels, names=("a", "b"), scores=scores, protocol={})


def figure() -> Figure:
    drawn = Figure()
    drawn.subplots().imshow(np.random.default_rng(0).random((200, 200)))
    return drawn


def fill_counts(folder: Path) -> None:
    store = CountStore(folder / "counts", {"config": "c"})
    for i in range(10_000):
        store.add(f"image{i}", np.full((3, 40), 10**9))


def prepare(folder: Path) -> None:
    labels = np.random.default_rng(0).integers(0, 256, (400, 400), dtype=np.uint8)
    step = Step(folder / "labels/a.png", write_labels, (labels,))
    carry_out(Plan([step], 1, {folder / "val.txt": ["a"]}), 1, "test")


def cache_text(folder: Path) -> None:
    from sfp.clip.text_bank import _keep

    _keep(folder / "text/a.safetensors", torch.zeros(300, 512))


def download(folder: Path) -> None:
    fetch(Archive((folder.parent / "a.tar").as_uri()), folder / "downloads")


WRITERS = {
    "counts": fill_counts,
    "labels.png": lambda folder: result().save(folder / "a.png"),
    "overlay.jpg": lambda folder: result().save(folder / "a.jpg"),
    "masks.json": lambda folder: result().save(folder / "a.json"),
    "all.npz": lambda folder: result().save(folder / "a.npz"),
    "figure.png": lambda folder: save_figure(figure(), folder / "a.png", "--out", 300),
    "figure.pdf": lambda folder: save_figure(figure(), folder / "a.pdf", "--out", 300),
    "toyland": lambda folder: toyland.write_split(folder, "val", 3),
    "preparation": prepare,
    "text cache": cache_text,
    "download": download,
}
LIMIT = 8 << 10


@contextlib.contextmanager
def files_limited(limit: int):
    """No file may grow beyond it: a write gives EFBIG, as a full disk gives ENOSPC."""
    before = (
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN),
        resource.getrlimit(resource.RLIMIT_FSIZE),
    )
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1][1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before[1])
        signal.signal(signal.SIGXFSZ, before[0])


@pytest.fixture(scope="module")
def small_disk(tmp_path_factory):
    """A mounted disk of 64 KiB."""
    folder = tmp_path_factory.mktemp("disk")
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"no disk can be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def check_failure(writer: str, folder: Path, reason: str) -> None:
    before = files(folder)
    with pytest.raises(
        SFPError, match=f"can't be written .*{reason}.*;|{reason}.*same command goes on"
    ) as caught:
        WRITERS[writer](folder)
    assert str(folder) in str(caught.value) or writer == "download"
    kept = {
        "counts": {"counts/run.json", "counts/rank0.jsonl"},
        "download": {"downloads/a.tar.partial"},
    }.get(writer, set())
    left = {name for name in set(files(folder)) - set(before) if "lock" not in name}
    if writer == "toyland":  # whole scenes may stay
        scenes = {name for name in left if name.startswith("JPEGImages/val")}
        left -= {name for name in scenes if Image.open(folder / name).load()}
    assert left <= kept


@pytest.mark.parametrize("writer", WRITERS)
def test_a_file_that_may_not_grow(writer, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "a.tar").write_bytes(bytes(1 << 20))
    with files_limited(LIMIT):
        check_failure(writer, tmp_path / "out", "File too large")
    if writer == "counts":
        read = CountStore(tmp_path / "out/counts", {"config": "c"}).read(40)
        assert 2 < len(read) < 10_000 and all((counts == 10**9).all() for counts in read.values())
        whole = CountStore(tmp_path / "out/counts", {"config": "c"})
        whole.add("later", np.ones((3, 40), int))  # room again
        assert set(whole.read(40)) == {*read, "later"}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk(writer, small_disk):
    folder = small_disk / writer
    folder.mkdir()
    (folder.parent / "ballast").write_bytes(bytes((64 << 10) - LIMIT))
    (folder.parent / "a.tar").touch()
    os.truncate(folder.parent / "a.tar", 1 << 20)  # a hole, which takes no room
    try:
        check_failure(writer, folder, "No space left on device")
    finally:
        subprocess.run(["rm", "-r", *folder.parent.iterdir()], check=True)


@pytest.mark.parametrize("left", [0, 4, 40])
def test_pictures_of_an_evaluation_on_a_full_disk(left, small_disk, tmp_path, tool):
    """None is written, or half of one; what was counted is there when there is room again."""
    (small_disk / "filler").write_bytes(bytes((64 - left) << 10) if left else b"")
    with contextlib.suppress(OSError), (small_disk / "filler").open("ab", buffering=0) as file:
        while not left:
            file.write(bytes(4096))
    config, work = ROOT / "configs/cfg_toyland.py", tmp_path / "work"
    options = [
        "model.method=CLIP", "model.prompts=photo", "test_dataloader.dataset.scenes=1",
        f"test_dataloader.dataset.data_root={tmp_path}/toyland", "test_dataloader.num_workers=0",
    ]  # fmt: skip
    command = [config, "--work-dir", work, "--show-dir", small_disk, "--cfg-options", *options]
    try:
        code, _, error = tool("test", *command)
        assert code == 2 and "val_00000.png can't be written (No space left on device)" in error
        assert files(small_disk) == ["filler"] and not (work / "results.json").exists()
        (small_disk / "filler").unlink()
        subprocess.run(["mount", "-o", "remount,size=4m", small_disk], check=True)
        code, _, error = tool("test", *command)
        assert code == 0, error
        drawn = np.asarray(Image.open(small_disk / "val_00000.png"))
        scene = toyland.make_scene("val", 0)
        assert drawn.ndim == 3 and drawn.shape[1] > 1.8 * scene.labels.shape[1]
    finally:
        subprocess.run(f"rm -f {small_disk}/*", shell=True, check=True)
        subprocess.run(["mount", "-o", "remount,size=64k", small_disk], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("left", [0, 8, 24])
def test_the_real_command_on_a_disk_that_fills(left, small_disk, tmp_path):
    """Before the first log, among mmengine's logs, and after them."""
    (small_disk / "filler").unlink(missing_ok=True)
    with contextlib.suppress(OSError), (small_disk / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1024))
    with (small_disk / "filler").open("r+b") as file:
        file.truncate(max(file.seek(0, os.SEEK_END) - left * 1024, 0))
    options = [
        "test_dataloader.dataset.scenes=1",
        "model.method=MaskCLIP",
        "model.prompts=photo",
        "test_dataloader.num_workers=0",
    ]
    work = small_disk / f"work{left}"
    start = [sys.executable, ROOT / "tools/test.py", ROOT / "configs/cfg_toyland.py"]
    command = [*start, "--work-dir", work, "--cfg-options", *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "SFP_DATA": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    (small_disk / "filler").unlink()
    assert done.returncode == 2 and "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (work / "results.json").exists()
    assert not list(work.rglob("*.partial*"))


def test_a_device_that_takes_nothing():
    with (
        pytest.raises(OSError, match="No space left"),
        Path("/dev/full").open("wb", buffering=0) as file,
    ):
        file.write(b"x")


def test_groups_of_the_grid(tmp_path):
    with files_limited(0), pytest.raises(SFPError, match=r"group\.json can't be written"):
        save_group([], tmp_path / "logs/group.json")
    assert files(tmp_path) == []


def test_folders(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SFPError, match=r"can't be written \(Not a directory\)"):
        make_folder(tmp_path / "file/folder")


HOLD = """import sys, time; from pathlib import Path; from sfp.files import only_one
with only_one(Path(sys.argv[1]), '--out'): print('held', flush=True); {}"""


@contextlib.contextmanager
def holder(folder: Path, then: str = "time.sleep(60)"):
    command = [sys.executable, "-c", HOLD.format(then), str(folder)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    ) as process:
        try:
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


class TestOnlyOne:
    def test_the_second_is_refused_with_the_first_ones_name(self, tmp_path):
        with holder(tmp_path / "out") as process:
            here = f"on {socket.gethostname()}"
            words = f"process {process.pid} {here} is at work in .*out; wait .*, or .*--out"
            for _ in range(2):  # nor does the question disturb the answer
                with pytest.raises(SFPError, match=words), only_one(tmp_path / "out", "--out"):
                    pass
            process.kill()
            process.wait()
            with only_one(tmp_path / "out", "--out"):
                assert (tmp_path / "out/.lock.by").read_text() == f"process {os.getpid()} {here}"

    def test_it_ends_with_its_process_though_children_live_on(self, tmp_path):
        """As a dataloader's workers do for some seconds."""
        with holder(tmp_path, "import os; os.fork() or time.sleep(4); time.sleep(60)") as process:
            time.sleep(0.2)
            process.kill()
            process.wait()
            started = time.time()
            with only_one(tmp_path, "--out"):
                assert time.time() - started < 8

    def test_it_is_given_back(self, tmp_path):
        with contextlib.suppress(RuntimeError), only_one(tmp_path, "--out"):
            raise RuntimeError
        with holder(tmp_path):
            pass

    def test_a_folder_that_cannot_be_held(self, tmp_path):
        (tmp_path / "file").write_text("")
        with (
            pytest.raises(SFPError, match="choose another folder with --out"),
            only_one(tmp_path / "file/out", "--out"),
        ):
            pass
        words = r"out can't be written \(File too large\); choose another folder with --out"
        with files_limited(0), pytest.raises(SFPError, match=words):
            only_one(tmp_path / "out", "--out").__enter__()
        with only_one(tmp_path / "out", "--out"):
            pass
