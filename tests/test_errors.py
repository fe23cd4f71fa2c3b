"""Want of memory is told as such, wherever it strikes, and blamed on no file."""

from __future__ import annotations

import argparse
import errno
import sys
import textwrap

import numpy as np
import PIL.Image
import pytest
import torch
from conftest import ROOT
from forked import run

import sfp
from sfp.errors import SFPError, by_halves, is_want_of_memory, run_command
from sfp.images import read_image
from sfp.plugin import require_mmseg

require_mmseg()

BLAME = ("download", "fetch", "sound", "damaged", "cut short", "check its keys", "put it right")


def torchs() -> None:
    torch.empty(1 << 50)


def numpys() -> None:
    np.empty(1 << 50)


def raised(call) -> BaseException:
    with pytest.raises(Exception) as error:
        call()
    return error.value


def of_a_type() -> None:
    """oneDNN has no kernel for these types: its words begin as those for want of memory."""
    given = torch.zeros(2, 4, dtype=torch.bfloat16), torch.zeros(3, 4)
    torch.ops.mkldnn._linear_pointwise(*given, None, "none", [], "")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torchs, True),
        (numpys, True),
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), True),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("could not create a primitive"), True),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), True),
        (OSError("out of memory error when reading image file"), True),
        (of_a_type, False),
        (RuntimeError("mat1 and mat2 must have the same dtype, but got Float and Half"), False),
        (RuntimeError("expected scalar type Float but found BFloat16"), False),
        (OSError(errno.ENOSPC, "No space left on device"), False),
        (FileNotFoundError(errno.ENOENT, "No such file", "a"), False),
        (ValueError("out of memory"), False),
        (KeyError("x"), False),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_what_is_want_of_memory(error, expected):
    assert is_want_of_memory(raised(error) if callable(error) else error) == expected


ERRORS = [MemoryError(), torch.OutOfMemoryError("CUDA out of memory."), "torch"]


@pytest.mark.parametrize("error", ERRORS, ids=["MemoryError", "a GPU's", "a CPU's"])
class TestBlame:
    @pytest.fixture
    def run_out(self, error, monkeypatch):
        """A library's function that runs out of memory."""
        error = raised(torchs) if error == "torch" else error

        def replace(owner, name):
            def fail(*args, **kwargs):
                raise error

            monkeypatch.setattr(owner, name, fail)

        return replace

    def told(self, call, what):
        with pytest.raises(SFPError) as told:
            call()
        text = str(told.value)
        assert text.startswith(f"The memory ran out while {what}"), text
        assert not [word for word in BLAME if word in text], text

    @pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
    def test_checkpoint(self, suffix, run_out, tmp_path):
        import sfp.clip.checkpoints as module

        file = tmp_path / f"weights{suffix}"
        file.write_bytes(b"x")
        run_out(*((torch, "load") if suffix == ".pt" else (module, "safe_open")))
        self.told(lambda: module.read_checkpoint(file), f"reading {file}")

    def test_network(self, run_out):
        import open_clip
        import parity

        weights = parity.state_dict("vit12")
        run_out(open_clip, "CLIP")
        self.told(lambda: sfp.load_clip(pretrained=weights, device="cpu"), "taking over")

    def test_picture(self, run_out, tmp_path):
        PIL.Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
        run_out(PIL.Image.Image, "load")
        self.told(lambda: read_image(tmp_path / "a.png"), f"reading {tmp_path}")

    def test_picture_of_the_page(self, run_out, tmp_path):
        from sfp.page.backend import Backend

        PIL.Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
        backend = Backend(tmp_path)
        run_out(PIL.Image.Image, "load")
        self.told(lambda: backend.add_picture(tmp_path / "a.png"), "reading")

    def test_result(self, run_out, tmp_path):
        run_out(np, "load")
        self.told(lambda: sfp.Segmentation.load(tmp_path / "a.npz"), "reading")

    def test_config(self, run_out):
        from mmengine.config import Config

        from sfp.evaluation.config import CONFIGS, read_config

        run_out(Config, "fromfile")
        self.told(lambda: read_config(CONFIGS / "cfg_toyland.py", []), "reading the config")

    def test_building(self, error):
        from sfp.evaluation.config import building

        def call():
            with building("The model"):
                raise raised(torchs) if error == "torch" else error

        self.told(call, "building the model")

    def test_a_datasets_pipeline(self, error):
        from sfp.evaluation.dataset import NamedFailures

        def pipeline(data):
            raise raised(torchs) if error == "torch" else error

        self.told(lambda: NamedFailures(pipeline)(dict(img_path="a.jpg")), "preparing a.jpg")

    def test_matlab_file(self, run_out, tmp_path):
        import scipy.io

        from sfp.datasets.preparation.context459 import convert_map

        run_out(scipy.io, "loadmat")
        self.told(lambda: convert_map(tmp_path / "a", tmp_path / "a.mat"), "reading")

    def test_second_model(self, run_out, toyland_clip, tmp_path):
        import timm

        (tmp_path / "a.pt").write_bytes(b"x")
        options = dict(proxy="vit_tiny_patch16_224", proxy_weights=str(tmp_path / "a.pt"))
        real = timm.create_model

        def only_whole(name, pretrained=False, **more):
            if pretrained:
                raise self_error
            return real(name, **more)

        run_out(timm, "create_model")
        self_error = raised(lambda: timm.create_model("x"))
        timm.create_model = only_whole  # the monkeypatch of run_out puts it back
        self.told(
            lambda: sfp.build_method("ProxyCLIP", toyland_clip, **options),
            "loading timm's vit_tiny",
        )

    def test_a_program(self, error, capsys):
        def command(args):
            raise raised(torchs) if error == "torch" else error

        assert run_command(command, argparse.Namespace(debug=False)) == 2
        line = capsys.readouterr().err
        assert line.startswith("error: The memory ran out") and line.count("\n") == 1
        with pytest.raises((MemoryError, RuntimeError)):
            run_command(command, argparse.Namespace(debug=True))

    def test_a_single_window(self, error, toyland_clip, monkeypatch):
        segmenter = sfp.Segmenter("CLIP", toyland_clip, text_cache=False, prompts="photo")

        def fail(windows, *parts):
            raise raised(torchs) if error == "torch" else error

        monkeypatch.setattr(segmenter.pipeline.method, "run", fail)
        with pytest.raises(SFPError, match="does not fit into the memory of cpu"):
            segmenter(np.zeros((64, 64, 3), np.uint8), ["sky", "sea"])


def test_a_wrong_type_is_no_want_of_memory(toyland_clip, monkeypatch):
    segmenter = sfp.Segmenter("CLIP", toyland_clip, text_cache=False, prompts="photo")
    monkeypatch.setattr(segmenter.pipeline.method, "run", lambda *given: of_a_type())
    with pytest.raises(RuntimeError, match="primitive descriptor"):
        segmenter(np.zeros((64, 64, 3), np.uint8), ["sky", "sea"])


def test_other_errors_of_a_program_keep_their_traceback():
    def command(args):
        of_a_type()

    with pytest.raises(RuntimeError):
        run_command(command, argparse.Namespace(debug=False))


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_a_checkpoint_larger_than_the_memory(suffix, tmp_path):
    """In a process that may take hardly more than it has; the file is sound.

    Over 5 s where it is the first one that is forked: the imports before.
    """
    tensors = {"visual.conv1.weight": torch.zeros(1 << 25)}
    if suffix == "pt":
        torch.save(tensors, tmp_path / "a.pt")
    else:
        from safetensors.torch import save_file

        save_file(tensors, tmp_path / "a.safetensors")
    code = f"""
        import resource
        from sfp.clip.checkpoints import read_checkpoint
        from sfp.errors import SFPError
        line = next(l for l in open("/proc/self/status") if l.startswith("VmSize"))
        most = (int(line.split()[1]) << 10) + (64 << 20)
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        try:
            read_checkpoint("a.{suffix}")
        except SFPError as error:
            print(error)
    """
    done = run("-c", textwrap.dedent(code), cwd=tmp_path, environment={"PYTHONPATH": str(ROOT)})
    assert done.stdout.startswith(f"The memory ran out while reading a.{suffix}"), done


def test_by_halves():
    """Until it fits; other errors, and too little left to halve, are raised."""
    tried = []

    def work(most: int) -> int:
        tried.append(most)
        if most > 3:
            raise MemoryError
        return most

    assert by_halves(work, 20, 1) == 2 and tried == [20, 10, 5, 2]
    with pytest.raises(MemoryError):
        by_halves(work, 20, 4)
    with pytest.raises(RuntimeError, match="size"):
        by_halves(lambda most: torch.ones(2) @ torch.ones(3), 20)
