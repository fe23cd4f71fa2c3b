"""A catalogue of bad input over every door: each case ends in one sentence, and leaves nothing that
could be taken for a result.

A case is its door's call and the words that the sentence must have: the value or file that is
wrong. Besides, each sentence must say how to mend it, in one line without a traceback; command
lines end with exit code 2.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import runpy
import shutil
import socket
import sys
import tarfile
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import parity
import pytest
import torch
from conftest import ROOT
from PIL import Image
from safetensors.torch import save_file

import sfp
from sfp.clip.text_bank import TextBank
from sfp.commands.evaluate import start_ranks
from sfp.datasets import toyland
from sfp.errors import SFPError
from sfp.images import read_image
from sfp.pipeline import Pipeline, Protocol, Vocabulary
from sfp.result import Segmentation, compare

NAN, INF = float("nan"), float("inf")
# the hint is a clause that begins with a verb, or a name that is offered
_VERBS = (
    "give|set|use|choose|write|take|keep|leave|check|name|download|fetch|get|run|make|put|delete"
    "|add|shorten|save|load|lower|cut|prepare|measure|list|attach|call|complete|look at|start|bring"
    "|pass|install|open|free"
)
_HINT = re.compile(
    rf"(?:; |, or |, and |: |\. |^)(?:or |and |so )?(?:{_VERBS})\b"
    r"|did you mean|Choose one of|must |needs |goes from",
    re.IGNORECASE,
)


def check_sentence(text: str, *words: str) -> None:
    """One line that has the words and a hint."""
    assert "\n" not in text and "Traceback" not in text, text
    for word in words:
        assert word in text, f"{word!r} is not in: {text}"
    assert _HINT.search(text), f"no hint in: {text}"
    assert "weights_only" not in text and "allow_pickle" not in text, (
        f"advice to run what a file brings along: {text}"
    )


def case(name: str, given: object, *words: str):
    """A parameter set of what is given and the words."""
    return pytest.param(given, words, id=name[:80])


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with Toyland, a tiny VOC 2012 and files that are wrong in many ways."""
    root = tmp_path_factory.mktemp("bad_input")
    toyland.write_split(root / "data/toyland", "val", 2)
    write_voc(root / "data/VOCdevkit/VOC2012")
    pixels = toyland.make_scene("val", 0).image[:96, :128]
    Image.fromarray(pixels).save(root / "sound.jpg")
    whole = (root / "sound.jpg").read_bytes()
    (root / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (root / "zero.jpg").write_bytes(b"")
    (root / "words.jpg").write_text("no picture")
    for name in ("words.tar", "words.mp4"):
        (root / name).write_text("no picture" * 100)
    (root / "file").write_text("x\n")
    (root / "empty").mkdir()
    grey = np.full((40, 40), 0.5, np.float32)
    for name, value in (("nan", NAN), ("infinite", INF), ("negative", -3)):
        grey[3, 3] = value
        Image.fromarray(grey).save(root / f"{name}.tif")
    Image.new("1", (20000, 20000)).save(root / "bomb.png")
    names = {
        "latin.txt": "caf\xe9\nsea\n".encode("latin-1"),
        "utf16.txt": "sky\nsea\n".encode("utf-16"), "tab.txt": b"sky\tsea\n",
        "none.txt": b" \n\n", "nul.txt": b"sk\0y\n", "gap.txt": b"sky\n\nsea\n",
        "twice.txt": b"sky\nSky\n", "two.txt": b"sky\nsea\n",
    }  # fmt: skip
    for name, content in names.items():
        (root / name).write_bytes(content)
    (root / "broken.py").write_text("model = dict(")
    (root / "binary.py").write_bytes(b"\xff\xfe\0")
    (root / "broken.yaml").write_text("model: [")
    (root / "nothing.py").write_text("x = 1\n")
    (root / "zero.tar").write_bytes(b"")
    for name in ("loop", "loop.txt", "loop.jpg", "loop.pt", "loop.py"):
        (root / name).symlink_to(name)
    (root / "broken.tar").write_bytes(b"x" * 600)
    (root / "broken.zip").write_bytes(b"PK\3\4xxxx")
    with tarfile.open(root / "outside.tar", "w") as archive:
        archive.add(root / "file", "../../VOCdevkit/VOC2012/JPEGImages/a.jpg")
    for name, content in {
        "list": "[]",
        "half": '{"mIoU": 3',
        "none": "{}",
        "nan": json.dumps(RESULT | {"mIoU": NAN}),
    }.items():
        (root / f"given/{name}").mkdir(parents=True)
        (root / f"given/{name}/results.json").write_text(content)
    for name, others in (("sound", []), ("shared", ["voc20"])):
        (root / f"given/{name}").mkdir()
        (root / f"given/{name}/results.json").write_text(
            json.dumps(RESULT | {"shared_with": others})
        )
    return root


RESULT = dict(
    shared_with=[], images_resumed=0, changed_options={}, method="SFP", backbone="ViT-B-16",
    dataset="PascalVOCDataset",
    precision="fp32", device="cpu",
    pm="SOM", mIoU=3.0, aAcc=5.0, mAcc=4.0, absent=[], prompts_sha256="", names=[["a"]],
    seconds=1.0, images=3, pretrained="openai", prompts=80,
    protocol=dict(
        window=224, stride=112, short_side=336, logit_scale=50, prob_thd=0.15, area_thd=0.1,
        refine=[], pamr_iterations=0, sigmoid=False,
    ),
)  # fmt: skip


def write_voc(root: Path) -> None:
    """Two pictures of 64x80 in VOC 2012's layout."""
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    for name in "ab":
        Image.fromarray(toyland.make_scene("tune", 0).image[:64, :80]).save(
            root / f"JPEGImages/{name}.jpg"
        )
        Image.fromarray((np.arange(64 * 80).reshape(64, 80) % 21).astype(np.uint8)).save(
            root / f"SegmentationClass/{name}.png"
        )
    (root / "ImageSets/Segmentation/val.txt").write_text("a\nb\n")


@pytest.fixture
def program(place, monkeypatch, capsys):
    """A program of tools/ as a script in this process and in the folder of bad files.

    The exit code and all error lines.
    """

    def run(name: str, *arguments: str, data: Path | None = None) -> tuple[int, list[str]]:
        monkeypatch.chdir(place)
        monkeypatch.setenv("SFP_DATA", str(data or place / "data"))
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            runpy.run_path(str(ROOT / f"tools/{name}.py"), run_name="__main__")
        lines = capsys.readouterr().err.replace("\r", "\n").splitlines()
        errors = [
            line.partition("error: ")[2] for line in lines if re.match(r"([\w. ]+: )?error: ", line)
        ]
        return left.value.code, [
            f"{error}; choose from the usage" if lines[0].startswith("usage: ") else error
            for error in errors
        ]

    return run


def left_over(place: Path) -> list[Path]:
    return [
        p
        for pattern in ("results.json", "*.partial*")
        for p in place.rglob(pattern)
        if "given" not in p.parts
    ]


@pytest.fixture
def fails(program, place):
    """Run a program that must fail: one sentence, exit code 2, nothing left that looks whole."""

    def run(name: str, arguments: str, *words: str, **where) -> None:
        configs = {
            "TOYLAND": str(ROOT / "configs/cfg_toyland.py"),
            "VOC": str(ROOT / "configs/cfg_voc21.py"),
        }
        code, errors = program(
            name, *(configs.get(part, part) for part in arguments.split()), **where
        )
        assert code == 2 and len(errors) == 1, (code, errors)
        check_sentence(errors[0], *words)
        assert not left_over(place)

    return run


#
#
#
#
#
#
#
#
#
#
#
#
#
#
#
#
#
#
#
#
#
#
#
#
#
#
#
#
#
#
#
#
#
#
#
#
#
#
#
#
#
#
#
#
#
#
#
#
#
#
#
#
#
#
#
#
#
#
#
#
#
#
#
#
#
#
#
#
#
# ------------------------------------------------------------------------------------------------
# config
CONFIG = [
    ("model.window=8 model.stride=8", "window=8 is smaller than one patch (16)"),
    ("model.window=big", "window is 'big'"),
    ("model.window=-5", "window=-5"),
    ("model.window=3=4", "window is '3=4'"),
    ("model.stride=0", "stride=0 leave gaps"),
    ("model.stride=300", "stride=300 leave gaps"),
    ("model.logit_scale=nan", "logit_scale is"),
    ("model.logit_scale=0", "logit_scale is 0; give a number from 1e-06"),
    ("model.prob_thd=2", "prob_thd is 2"),
    ("model.prob_thd=None", "prob_thd is None"),
    ("model.prob_thd=0.5", "prob_thd=0.5", "'sky'", "which is no background"),
    ("model.area_thd=0.1", "area_thd=0.1", "'sky'", "which is no background"),
    ("model.pamr_iterations=x", "pamr_iterations is 'x'"),
    ("model.pamr_dilations=0", "pamr_dilations is 0"),
    ("model.precision=fp64", "'fp64'"),
    ("model.device=banana", "device='banana'"),
    ("model.device=cuda:9", "device='cuda:9'"),
    ("model.clip=vit-b/16", "did you mean 'ViT-B-16'"),
    ("model.clip=None", "model is None"),
    ("model.pretrained=toylnd", "'toylnd'"),
    ("model.pretrained=absent.pt", "absent.pt"),
    ("model.weights_sha256=00ff", "weights_sha256='00ff'"),
    ("model.method=sfp", "did you mean 'SFP'"),
    ("model.method=SFP-relase", "did you mean 'SFP-release'"),
    ("model.pm=som", "did you mean 'SOM'"),
    ("model.pm=L2 model.topk=-1", "topk of detector L2 is -1"),
    ("model.pm=L2 model.pm=LOF", "model.pm twice"),
    ("model.purify=yes", "purify of method SFP is 'yes'"),
    ("model.purify_layers=[99]", "layer 99"),
    ("model.methd=SFP", "did you mean 'method'"),
    ("model.sae_residul=none", "'sae_residul'", "did you mean 'sae_residual'"),
    ("model.hai=no", "hai of method SFP is 'no'"),
    ("model.windows_at_once=-1", "windows_at_once=-1"),
    ("model.prompts=photos", "did you mean 'photo'"),
    ("model.prompts=[]", "prompts is []"),
    ("model.name_path=absent.txt", "absent.txt"),
    ("model.name_path=None", "model.names"),
    ("model.names=[sky]", "model.names is ['sky']"),
    ("model.name_path=two.txt", "2 classes, but ToylandDataset has 16"),
    ("model.name_path=latin.txt", "latin.txt", "UTF-8"),
    ("model.name_path=gap.txt", "gap.txt has an empty name at place 2"),
    ("model.name_separator=", "separator ''"),
    ("model.text_cache=file/cache", "file/cache"),
    ("model.text_cache=5", "text_cache is 5"),
    ("model.text_cache=True", "text_cache is True"),
    ("model.name=3", "option of method SFP 'name'"),
    ("model.refine=['PAMR:name=3']", "option of refiner PAMR 'name'"),
    ("model.type=SFPSegmenter", "model.type 'SFPSegmenter'; did you mean 'SFPSegmentor'?"),
    ("model=3", "model=dict"),
    ("mdoel.pm=L2", "'mdoel.pm'; did you mean 'model'"),
    ("model.pm", "'model.pm'"),
    ("=3", "'=3'"),
    ("data=elsewhere", "SFP_DATA"),
    ("settings=their", "settings 'their'"),
    ("short_side=0", "short_side=0"),
    ("short_side=3", "3x"),
    ("test_dataloader.dataset.type=ToylandDatset", "did you mean 'ToylandDataset'?"),
    ("test_dataloader.dataset.type=CityscapeDataset", "did you mean 'CityscapesDataset'?"),
    ("test_dataloader.dataset.nonsense=1", "nonsense"),
    ("test_dataloader.dataset.scenes=0", "scenes=0"),
    ("test_dataloader.dataset.split=vall", "split='vall'"),
    ("test_dataloader.dataset.data_root=file/x", "file/x"),
    ("test_dataloader.batch_size=0", "test_dataloader.batch_size is 0"),
    ("test_dataloader.sampler.shuffle=True", "shuffle"),
    ("test_dataloader.sampler.type=Foo", "sampler.type"),
    ("model.name_path=loop.txt", "loop.txt", "symbolic links"),
    ("test_dataloader.dataset.data_root=loop", "loop"),
    ("test_evaluator.ignore_index=3", "ignore_index is 3", "ToylandDataset 255"),
    ("test_evaluator.type=IoUMetric", "ClassIoUMetric"),
    ("test_evaluator.iou_metrics=[mDice]", "mDice"),
    ("test_evaluator.ignore_index=x", "ignore_index of ClassIoUMetric is 'x'"),
    ("default_hooks=3", "default_hooks", "mmengine's own runner"),
    ("load_from=absent.pth", "load_from", "model.pretrained"),
]
_FEW = ("test_dataloader.dataset.scenes=2", "test_dataloader.num_workers=0")


@pytest.mark.parametrize(
    ("options", "words"), [case(given, given, *words) for given, *words in CONFIG]
)
def test_config(options, words, fails):
    few = [option for option in _FEW if option.split("=")[0] not in options]
    fails("test", f"TOYLAND --work-dir work --cfg-options {' '.join(few)} {options}", *words)


# ----------------------------------------------------------------------------------- command lines
sys.path.append(
    str(ROOT / "tools/dev")
)  # as for a program that is run there: some import each other
_BENCH, _SPEED = (
    "--devices cpu --out grid",
    "--model Toyland --pretrained toyland --methods CLIP --rounds 1 --batch 1",
)
COMMANDS = [
    ("test", "", "config"),
    ("test", "absent.py", "'absent.py'"),
    ("test", "empty", "'empty'"),
    ("test", f"{ROOT}/configs/cfg_toylnd.py", "did you mean"),
    ("test", f"{ROOT}/configs/base_config.py", "base_config.py", "dataset.type"),
    ("test", "broken.py", "broken.py", "SyntaxError"),
    ("test", "binary.py", "binary.py"),
    ("test", "broken.yaml", "broken.yaml"),
    ("test", "nothing.py", "nothing.py has no model"),
    (
        "test",
        "VOC --cfg-options test_dataloader.dataset.data_root=absent",
        "data root absent",
        "SFP_DATA",
    ),
    ("test", "TOYLAND --work-dir file", "file can't be written"),
    ("test", "TOYLAND --work-dir file/inside", "file/inside can't be written"),
    ("test", "TOYLAND --work-dir /proc/inside", "/proc/inside can't be written"),
    ("test", "TOYLAND --launcher pytorch", "--launcher pytorch needs torchrun"),
    ("test", "TOYLAND --launcher mpi", "--launcher mpi needs mpirun"),
    ("test", "loop.py", "'loop.py'"),
    ("test", "TOYLAND --work-dir loop", "loop can't be written"),
    ("segment", "loop.jpg --names a", "loop.jpg can't be read"),
    ("segment", "sound.jpg --names a --out loop", "loop can't be written"),
    ("segment", "sound.jpg --names a --pretrained loop.pt", "loop.pt"),
    ("segment", "sound.jpg --names a,b --options name=3", "option of method SFP 'name'"),
    ("segment", "sound.jpg --names a,b --options clip=3", "option of method SFP 'clip'"),
    ("segment", "sound.jpg --names a,b --options text_cache=5", "text_cache is 5"),
    ("segment", f"sound.jpg --names a,b --options weights_sha256={'0' * 63}a", "000a", "SHA-256"),
    ("segment", "sound.jpg --names a,b --options prompts=phot", "did you mean 'photo'"),
    ("segment", "list.txt --names a", "no list list.txt"),
    ("segment", "*.webp --names a", "No file is named as *.webp"),
    ("segment", "absent.tar --names a", "no file absent.tar"),
    ("segment", "words.tar --names a", "words.tar is cut short or damaged after 0 pictures"),
    ("segment", "words.mp4 --names a", "words.mp4 can't be read as a video"),
    ("segment", "sound.jpg --names a --every 0", "--every 0"),
    ("segment", "sound.jpg --names a,b --processes 0", "--processes 0"),
    ("segment", "sound.jpg --names a,b --shard 3/2", "'3/2' is no share; write I/N"),
    ("segment", "sound.jpg --names a,b --shard x", "'x' is no share"),
    ("segment", "sound.jpg --names a,b --engine spark", "'spark'"),
    ("segment", "sound.jpg --names a,b --address a:1", "--address is Ray's"),
    ("segment", "sound.jpg --names a,b --actors 2", "--actors is Ray's"),
    ("benchmark", "--devices 9", "'9'"),
    ("benchmark", f"{_BENCH} --methods SFP SFP", "one name"),
    ("benchmark", f"{_BENCH} --settings theirs", "theirs"),
    ("benchmark", "--run-group absent.json", "absent.json"),
    ("benchmark", "--run-group file", "file holds no cells"),
    ("ablate", "", "No table"),
    ("ablate", "sfp-table22", "did you mean 'sfp-table2'"),
    ("segment", "absent.jpg --names a", "absent.jpg"),
    ("segment", "words.jpg --names a", "words.jpg can't be read"),
    ("segment", "zero.jpg --names a", "zero.jpg can't be read"),
    ("segment", "cut.jpg --names a", "cut.jpg can't be read"),
    ("segment", "empty --names a", "folder empty"),
    ("segment", "sound.jpg --names a,,b", "empty name at place 2"),
    ("segment", "sound.jpg --names cat,Cat", "duplicate name 'cat'"),
    ("segment", f"sound.jpg --names {'x' * 300}", "xxx", "CLIP reads 75"),
    ("segment", "sound.jpg --names a,b --window 8 --stride 8", "window=8"),
    ("segment", "sound.jpg --names a,b --window x", "'x'"),
    ("segment", "sound.jpg --names a,b --short-side 0", "short_side=0"),
    ("segment", "sound.jpg --names a,b --method SPF", "did you mean 'SFP'"),
    ("segment", "sound.jpg --names a,b --methods SFP,SFP", "SFP,SFP"),
    ("segment", "sound.jpg --names a,b --methods SFP,,CLIP", "method ''"),
    ("segment", "sound.jpg --names a,b --device banana", "'banana'"),
    ("segment", "sound.jpg --names a,b --options sigma", "'sigma'"),
    ("segment", "sound.jpg --names a,b --options prob_thd=nan --background c", "prob_thd is 'nan'"),
    ("segment", "sound.jpg --names a --no-background --options prob_thd=0.9", "--background"),
    ("segment", "sound.jpg --names a,b --options device=cpu", "device"),
    ("segment", "sound.jpg --names a,b --options window=32 window=64", "window twice"),
    (
        "segment",
        "sound.jpg --names a,b --method NACLIP --options sigma=0",
        "sigma of method NACLIP is 0",
    ),
    ("segment", "sound.jpg --names a,b --method ProxyCLIP", "proxy_weights"),
    ("segment", "sound.jpg --names a,b --background c", "'c'", "prob_thd"),
    ("segment", "sound.jpg --names a,b --out file/x", "file/x"),
    ("check_dataset", "voc22", "'voc22'"),
    ("check_dataset", "ade20k", "ADEChallengeData2016"),
    ("check_dataset", "voc21 --workers 0", "--workers is 0"),
    ("prepare_dataset", "voc22", "'voc22'"),
    ("prepare_dataset", "voc21 --out out", "VOCtrainval_11-May-2012.tar"),
    ("prepare_dataset", "voc21 --out out --source absent", "absent"),
    ("prepare_dataset", "voc21 --out out --source empty", "empty"),
    ("prepare_dataset", "voc21 --out out --source zero.tar", "zero.tar"),
    ("prepare_dataset", "voc21 --out out --source broken.tar", "broken.tar"),
    ("prepare_dataset", "voc21 --out out --source outside.tar", "outside.tar"),
    ("prepare_dataset", "ade20k --out out --source broken.zip", "broken.zip"),
    ("prepare_dataset", "voc21 --out out --source empty --workers -1", "--workers is -1"),
    ("prepare_dataset", "voc21 --out out --mirror here", "--mirror"),
    ("prepare_dataset", "voc21 --out out --mirror here --download", "'here'"),
    ("compare_names", "TOYLAND --images 0", "--images is 0"),
    ("compare_names", "TOYLAND --names plain=absent.txt", "absent.txt"),
    ("compare_names", "TOYLAND --names =two.txt", "'=two.txt'"),
    ("compare_names", "TOYLAND --names plain", "'plain'"),
    (
        "compare_names",
        "TOYLAND --names plain=two.txt --cfg-options test_dataloader.dataset.scenes=2",
        "'plain' has 2 classes",
    ),
    ("compare_names", f"TOYLAND --distractors {ROOT}/configs/cls_toyland.txt", "cls_toyland.txt"),
    (
        "compare_names",
        "TOYLAND --cfg-options model.prob_thd=0.5 test_dataloader.dataset.scenes=2",
        "prob_thd=0.5",
    ),
    ("compare_precision", "--scenes 0", "--scenes is 0"),
    ("compare_precision", "--scenes 1 --precisions fp64", "'fp64'"),
    ("compare_precision", "--scenes 1 --device banana", "'banana'"),
    ("compare_precision", "--scenes 1 --methods SPF", "'SPF'"),
    ("dev/draw_pictures", "out --only page.jpg", "'page.jpg'"),
    ("dev/draw_pictures", "file/x --only scene.jpg", "file/x"),
    ("make_table", "empty", "empty"),
    ("make_table", "given/list", "given/list/results.json"),
    ("make_table", "given/half", "given/half/results.json"),
    ("make_table", "given/none", "given/none/results.json"),
    ("make_table", "given/sound --out file/x.md", "file/x"),
    ("plot_cost", "empty", "empty"),
    ("plot_cost", "given/shared", "given/shared", "pass of its own"),
    ("plot_cost", "given/list", "given/list/results.json"),
    ("plot_cost", "given/nan", "given/nan/results.json"),
    ("plot_cost", "given/sound --out cost.doc", "cost.doc"),
    ("plot_cost", "given/sound --out file/x.png", "file/x"),
    ("plot_cost", "given/sound --csv file/x.csv", "file/x"),
    ("measure_speed", f"{_SPEED} --rounds 0", "--rounds is 0"),
    ("measure_speed", f"{_SPEED} --batch -1", "--batch is -1"),
    ("measure_speed", f"{_SPEED} --classes 0", "--classes is 0"),
    ("measure_speed", f"{_SPEED} --image 0 9", "--image is 0"),
    ("measure_speed", f"{_SPEED} --threads -1", "--threads is -1"),
    ("measure_speed", f"{_SPEED} --plain-precision fp64", "'fp64'"),
    ("measure_speed", f"{_SPEED} --device banana", "'banana'"),
    ("measure_speed", f"{_SPEED} --methods SFP:sigma", "'sigma'"),
    ("measure_speed", f"{_SPEED} --methods SFP:hai_iteration=2", "did you mean 'hai_iterations'"),
    ("measure_speed", "--model ViT-X", "ViT-X"),
    ("probe_layers", "TOYLAND --images 0", "--images is 0"),
    ("probe_layers", "TOYLAND --cfg-options model.weights_sha256=00ff", "weights_sha256='00ff'"),
    ("find_registers", "TOYLAND --cfg-options model.weights_sha256=00ff", "weights_sha256='00ff'"),
    ("probe_channels", "TOYLAND --cfg-options model.weights_sha256=00ff", "weights_sha256='00ff'"),
    ("probe_layers", "TOYLAND --cfg-options model.prompts=phot", "did you mean 'photo'"),
    ("compare_names", "TOYLAND --cfg-options model.weights_sha256=00ff", "weights_sha256='00ff'"),
    ("measure_speed", f"{_SPEED} --weights-sha256 00ff", "weights_sha256='00ff'"),
    ("measure_speed", "--methods CLIP --rounds 1 --weights-sha256 00ff", "weights_sha256='00ff'"),
    ("probe_layers", "TOYLAND --pairs -3", "--pairs -3"),
    ("probe_layers", "TOYLAND --epsilon nan", "--epsilon is nan"),
    ("probe_layers", "TOYLAND --detectors SOM SOM", "SOM SOM"),
    ("probe_layers", "TOYLAND --cfg-options model.window=big", "window is 'big'"),
    ("dev/make_method_tables", "--nonsense", "--nonsense"),
    ("dev/train_toyland", "--work-dir out --steps 0", "--steps is 0"),
    ("dev/train_toyland", "--work-dir out --clean", "--clean"),
    ("dev/measure_outliers", "--scenes 0", "--scenes is 0"),
    ("dev/train_toyland", "--work-dir out --lr nan", "--lr is nan"),
    ("dev/train_toyland", "--work-dir file/x", "file/x"),
    ("dev/select_toyland", "--work-dir empty --scenes 1", "empty"),
    ("dev/select_toyland", "--work-dir empty --scenes 0", "--scenes is 0"),
]


@pytest.mark.parametrize(
    ("given", "words"),
    [case(f"{name} {given}", (name, given), *words) for name, given, *words in COMMANDS],
)
def test_command_line(given, words, fails):
    name, arguments = given
    if name == "segment" and "--model" not in arguments:
        arguments += " --model Toyland"
    fails(name, arguments, *words)


_TORCH = dict(
    RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT="29777"
)
_SLURM = dict(SLURM_PROCID="0", SLURM_NTASKS="1", SLURM_LOCALID="0", MASTER_ADDR="127.0.0.1")
_MPI = {f"OMPI_COMM_WORLD_{key}": "0" for key in ("RANK", "LOCAL_RANK")}
_MPI |= dict(OMPI_COMM_WORLD_SIZE="1", MASTER_ADDR="127.0.0.1")
RANKS = [
    ("pytorch", {}, "--launcher pytorch needs torchrun"),
    *(("pytorch", _TORCH | {key: ""}, f"{key} is ''") for key in _TORCH if key != "MASTER_ADDR"),
    *(("pytorch", _TORCH | {key: "x"}, "is 'x'") for key in ("RANK", "WORLD_SIZE", "MASTER_PORT")),
    ("pytorch", _TORCH | dict(MASTER_PORT="99999"), "port 99999"),
    ("pytorch", _TORCH | dict(MASTER_PORT="0"), "port 0"),
    ("pytorch", _TORCH | dict(MASTER_PORT="-1"), "MASTER_PORT is '-1'"),
    ("pytorch", _TORCH | dict(RANK="3", WORLD_SIZE="2"), "rank 3 of 2"),
    ("pytorch", _TORCH | dict(MASTER_ADDR="no.such.host.invalid"), "no.such.host.invalid"),
    ("pytorch", _TORCH | dict(MASTER_ADDR=""), "MASTER_ADDR"),
    ("pytorch", _TORCH | dict(MASTER_PORT="TAKEN"), "can't meet the others"),
    *(("slurm", _SLURM | {key: ""}, f"{key} is ''") for key in _SLURM if key != "MASTER_ADDR"),
    ("slurm", dict(SLURM_PROCID="0", SLURM_NTASKS="1", SLURM_LOCALID="0"), "scontrol"),
    *(("mpi", _MPI | {key: ""}, f"{key} is ''") for key in _MPI if key != "MASTER_ADDR"),
    ("mpi", _MPI | dict(MASTER_ADDR=""), "MASTER_ADDR"),
]


@pytest.mark.parametrize(
    ("launcher", "given", "words"), RANKS, ids=[f"{r[0]} {r[2]}"[:60] for r in RANKS]
)
def test_ranks_that_cannot_start(launcher, given, words, monkeypatch):
    for name in (*_TORCH, *_SLURM, *_MPI, "SLURM_NODELIST"):
        monkeypatch.delenv(name, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for name, value in given.items():
            port = str(taken.getsockname()[1])
            monkeypatch.setenv(name, port if value == "TAKEN" else value)
        with pytest.raises(SFPError) as caught:
            start_ranks(launcher)
    check_sentence(str(caught.value), words)


GRID = [
    ("--methods SPF", "SPF / Toyland / toyland", "did you mean 'SFP'"),
    ("--methods SFP:pm=L2,topk=x", "topk"),
    ("--methods SFP:sigma", "'model.sigma'"),
    ("--methods SFP:name=x", "option of method SFP 'name'"),
    ("--datasets voc22", "voc22", "did you mean"),
    ("--datasets ade20k", "data root"),
    ("--backbones :x", "':x'"),
    ("--cfg-options model.prob_thd=0.5 test_dataloader.dataset.scenes=2", "prob_thd=0.5"),
    ("--cfg-options model.window=big", "window is 'big'"),
    ("--cfg-options model.name_path=two.txt test_dataloader.dataset.scenes=2", "2 classes"),
    ("--cfg-options test_dataloader.dataset.scenes=0", "scenes=0"),
]


@pytest.mark.parametrize(
    ("options", "words"), [case(given, given, *words) for given, *words in GRID]
)
def test_a_cell_of_the_grid(options, words, place, monkeypatch, capsys):
    """Such cells can't start; each is told in a line, and the command ends with 1."""
    monkeypatch.chdir(place)
    monkeypatch.setenv("SFP_DATA", str(place / "data"))
    monkeypatch.setattr(sys, "argv", ["benchmark", *f"{_BENCH} {options}".split()])
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(ROOT / "tools/benchmark.py"), run_name="__main__")
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("failed: ")]
    assert left.value.code == 1 and not left_over(place)
    check_sentence(line, *words)


DEBUG = {
    "test": "absent.py", "benchmark": "--devices 9", "ablate": "", "segment": "empty --names a",
    "check_dataset": "voc22",
    "prepare_dataset": "voc22", "compare_names": "absent.py", "compare_precision": "--scenes 0",
    "dev/draw_pictures": "out --only x",
    "make_table": "empty", "plot_cost": "empty", "measure_speed": "--rounds 0",
    "probe_layers": "absent.py", "probe_channels": "absent.py",
    "dev/measure_outliers": "--scenes 0",
    "dev/train_toyland": "--work-dir out --steps 0",
    "dev/select_toyland": "--work-dir empty --scenes 0",
}  # fmt: skip


@pytest.mark.parametrize("name", DEBUG)
def test_debug_shows_the_traceback(name, place, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "argv", [name, *DEBUG[name].split(), "--debug"])
    with pytest.raises(SFPError):
        runpy.run_path(str(ROOT / f"tools/{name}.py"), run_name="__main__")


# ------------------------------------------------------------------------------------------ Python
@pytest.fixture(scope="module")
def box(place, toyland_clip):
    """What Python cases work with."""
    segmenter = sfp.Segmenter(
        "SFP", toyland_clip, text_cache=False, prompts="photo", short_side=64, window=64, stride=64
    )
    image = toyland.make_scene("val", 0).image[:96, :128]
    result = segmenter(image, ["sky", "sea"])
    vocabulary = Vocabulary.from_names(["sky", "sea"])
    return SimpleNamespace(
        clip=toyland_clip,
        segmenter=segmenter,
        image=image,
        place=place,
        result=result,
        vocabulary=vocabulary,
    )


def _made(box, **options):
    return sfp.Segmenter(options.pop("method", "SFP"), box.clip, text_cache=False, **options)


def _saved(box, **changes) -> Path:
    """An .npz like a result's."""
    arrays = dict(
        labels=np.zeros((4, 4)),
        names=np.array(["a"]),
        image=np.zeros((4, 4, 3), np.uint8),
        protocol=np.array("{}"),
    )
    np.savez(box.place / "made.npz", **{**arrays, **changes})
    return box.place / "made.npz"


def _asked(*names):
    return lambda box: box.segmenter(box.image, list(names))


def _option(**options):
    return lambda box: _made(box, **options)


def _picture(image):
    return lambda box: read_image(image)


def _file(name):
    return lambda box: read_image(box.place / name)


def _inspected(corners):
    return lambda box: box.segmenter.inspect(box.image, box=corners)


def _looked(name, *arguments):
    return lambda box: getattr(box.segmenter.inspect(box.image).plain, name)(*arguments)


def _weights(change):
    """A model whose state dict has one tensor changed."""

    def load(box):
        weights = {k: v for k, v in box.clip.model.state_dict().items() if k != "attn_mask"}
        key = "visual.class_embedding"
        return sfp.load_clip(pretrained={**weights, key: change(weights[key])}, device="cpu")

    return load


def _names_file(name):
    return lambda box: Vocabulary.from_file(box.place / name)


PYTHON = [
    # names
    case("no names", _asked(), "no names"),
    case("names None", lambda box: box.segmenter(box.image, None), "NoneType"),
    case("names a text", lambda box: box.segmenter(box.image, "cat"), "'cat'"),
    case("names a set", lambda box: box.segmenter(box.image, {"cat", "sofa"}), "a set"),
    case("names a generator", lambda box: box.segmenter(box.image, (n for n in "ab")), "generator"),
    case("name a number", _asked("cat", 3), "3 at place 2"),
    case("name only whitespace", _asked("cat", " \t "), "empty name at place 2"),
    case("name only invisible", _asked("\u200b"), "empty name at place 1"),
    case("name with a control character", _asked("cat", "so\x07fa"), "U+0007"),
    case("name with a line break", _asked("cat\nsofa"), "U+000A"),
    case("name with half a surrogate", _asked("\ud800cat"), "U+D800"),
    case("name with CLIP's end mark", _asked("cat <end_of_text> dog"), "<end_of_text>"),
    case("name over 77 tokens", _asked("cat", "word " * 90), "word word", "tokens"),
    case("name over 77 tokens with its prompt", _asked("word " * 73), "word word"),
    case("synonyms empty", _asked(["cat", ""]), "place 1"),
    case("synonym twice", _asked(["cat", "cat "]), "'cat' twice"),
    case("name twice, capitals", _asked("Cat", "cat"), "'cat' at places 1, 2"),
    case(
        "background a number",
        lambda box: box.segmenter(box.image, ["a"], background=3),
        "background is 3",
    ),
    case("file not UTF-8", _names_file("latin.txt"), "latin.txt"),
    case("file UTF-16", _names_file("utf16.txt"), "utf16.txt"),
    case("file with tabs", _names_file("tab.txt"), "tab.txt", "U+0009"),
    case("file with NUL", _names_file("nul.txt"), "nul.txt", "U+0000"),
    case("file of blank lines", _names_file("none.txt"), "none.txt has no names"),
    case("file with one name twice", _names_file("twice.txt"), "twice.txt", "'sky'"),
    case("file a folder", _names_file("empty"), "empty"),
    case("words to encode none", lambda box: TextBank(box.clip, cache_dir=False).encode([]), "[]"),
    case("prompt with other braces", lambda box: TextBank(box.clip, ["{} {x}"]), "{} {x}"),
    case("prompt without braces", lambda box: TextBank(box.clip, ["a photo"]), "a photo"),
    case("prompts a number", lambda box: TextBank(box.clip, 3), "prompts is 3"),
    # pictures
    case("picture absent", _picture("absent.jpg"), "absent.jpg"),
    case("picture a folder", _file("empty"), "empty"),
    case("picture None", _picture(None), "NoneType"),
    case("picture zero bytes", _file("zero.jpg"), "zero.jpg"),
    case("picture cut", _file("cut.jpg"), "cut.jpg"),
    case("picture a bomb", _file("bomb.png"), "bomb.png"),
    case("TIFF with NaN", _file("nan.tif"), "nan.tif", "NaN or infinite"),
    case("TIFF infinite", _file("infinite.tif"), "infinite.tif", "NaN or infinite"),
    case("TIFF negative", _file("negative.tif"), "negative.tif", "-3"),
    case("tensor with NaN", _picture(torch.full((3, 8, 8), NAN)), "NaN or infinite"),
    case("tensor infinite", _picture(torch.full((3, 8, 8), INF)), "NaN or infinite"),
    case("tensor above 1", _picture(torch.full((3, 8, 8), 9.0)), "9"),
    case("float array", _picture(np.full((8, 8, 3), NAN)), "float64"),
    case("array of no pixels", _picture(np.zeros((0, 4, 3), np.uint8)), "(0, 4, 3)"),
    case(
        "picture too thin",
        lambda box: box.segmenter(np.zeros((1, 3000, 3), np.uint8), ["a"]),
        "3000x1",
        "patch",
    ),
    case("many of one picture", lambda box: box.segmenter.many(box.image, ["a"]), "ndarray"),
    case("many of none", lambda box: box.segmenter.many(None, ["a"]), "None"),
    case(
        "normalised image with NaN",
        lambda box: box.segmenter.pipeline.segment([torch.full((3, 64, 64), NAN)], [], []),
        "NaN or infinite",
    ),
    case(
        "windows smaller than a patch",
        lambda box: box.segmenter.pipeline.method(torch.zeros(1, 3, 8, 8)),
        "8x8",
        "(16)",
    ),
    case(
        "windows of integers",
        lambda box: box.segmenter.pipeline.method(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)),
        "torch.uint8",
    ),
    # protocol
    case("window smaller than a patch", _option(window=15, stride=15), "window=15", "(16)"),
    case("window a text", lambda box: Protocol(window="big"), "window is 'big'"),
    case("window NaN", lambda box: Protocol(window=NAN), "window is nan"),
    case("stride above window", lambda box: Protocol(stride=300), "stride=300"),
    case("stride 0", lambda box: Protocol(stride=0), "stride=0"),
    case("logit_scale infinite", lambda box: Protocol(logit_scale=INF), "logit_scale is inf"),
    case("prob_thd 2", lambda box: Protocol(prob_thd=2), "prob_thd is 2"),
    case("area_thd NaN", lambda box: Protocol(area_thd=NAN), "area_thd is nan"),
    case("pamr_dilations none", lambda box: Protocol(pamr_dilations=()), "pamr_dilations"),
    case(
        "windows_at_once 0",
        lambda box: Pipeline(box.segmenter.pipeline.method, None, windows_at_once=0),
        "windows_at_once=0",
    ),
    case("short_side a text", _option(short_side="x"), "short_side is 'x'"),
    case("short_side NaN", _option(short_side=NAN), "short_side is nan"),
    # methods, detectors, options
    case("method None", _option(method=None), "None"),
    case("method in small letters", _option(method="sclip"), "did you mean 'SCLIP'"),
    case("method without a CLIP", lambda box: sfp.build_method("SFP", "ViT-B-16"), "'ViT-B-16'"),
    case("option called name", _option(name=3), "option of method SFP 'name'"),
    case("option called clip", _option(clip=3), "option of method SFP 'clip'"),
    case("text_cache a number", lambda box: sfp.Segmenter("SFP", box.clip, text_cache=5), "5"),
    case(
        "refiner's option called name",
        _option(refine=[dict(type="PAMR", name=3)]),
        "option of refiner PAMR 'name'",
    ),
    case("option of another method", _option(sigma=3), "'sigma'"),
    case("purify a number", _option(purify=1), "purify of method SFP is 1"),
    case("pm empty", _option(pm=""), "detector ''"),
    case("purify_layers none", _option(purify_layers=[]), "purify_layers of SFP is []"),
    case("purify_layers NaN", _option(purify_layers=NAN), "nan"),
    case("purify_layers a bool", _option(purify_layers=[True]), "[True]"),
    case("sae_lambda NaN", _option(sae_lambda=NAN), "sae_lambda of method SFP is nan"),
    case("hai_first_layer 12", _option(hai_first_layer=12), "layer 12"),
    case("sigma infinite", _option(method="NACLIP", sigma=INF), "sigma of method NACLIP is inf"),
    case("sigma None", _option(method="NACLIP", sigma=None), "sigma of method NACLIP is None"),
    case(
        "res_cls a text", _option(method="SC-CLIP", res_cls="x"), "res_cls of method SC-CLIP is 'x'"
    ),
    case("fuse_layers backwards", _option(method="SC-CLIP", fuse_layers=(9, 3)), "(9, 3)"),
    case(
        "temperature negative",
        _option(method="GEM", temperature=-1),
        "temperature of method GEM is -1",
    ),
    case("depth 0", _option(method="GEM", depth=0), "depth of method GEM is 0"),
    case("cluster_min_samples 1.5", _option(method="CLIPtrase", cluster_min_samples=1.5), "1.5"),
    case(
        "proxy None", _option(method="ProxyCLIP", proxy=None), "proxy of method ProxyCLIP is None"
    ),
    case("pm without a type", _option(pm=dict(max_outliers=3)), "has no type"),
    case(
        "detector in small letters",
        lambda box: sfp.build_detector("dbscan"),
        "did you mean 'DBSCAN'",
    ),
    case(
        "topk negative", lambda box: sfp.build_detector("L2", topk=-1), "topk of detector L2 is -1"
    ),
    case(
        "threshold NaN",
        lambda box: sfp.build_detector("L2", threshold=NAN),
        "threshold of detector L2 is nan",
    ),
    case("k None", lambda box: sfp.build_detector("LOF", k=None), "k of detector LOF is None"),
    case(
        "eps a text",
        lambda box: sfp.build_detector("DBSCAN", eps="x"),
        "eps of detector DBSCAN is 'x'",
    ),
    case("seed negative", lambda box: sfp.build_detector("IsolationForest", seed=-1), "-1"),
    # models
    case("model None", lambda box: sfp.load_clip(None), "model is None"),
    case("model a ResNet", lambda box: sfp.load_clip("RN50"), "RN50 is no plain ViT"),
    case("model a ConvNeXt", lambda box: sfp.load_clip("convnext_base"), "but convnext_base"),
    case("a SigLIP by OpenAI", lambda box: sfp.load_clip("ViT-B-16-SigLIP"), "'openai'", "webli"),
    case("pretrained a number", lambda box: sfp.load_clip("Toyland", 5), "pretrained is 5"),
    case("device unknown", lambda box: sfp.load_clip("Toyland", device="banana"), "'banana'"),
    case("device meta", lambda box: sfp.load_clip("Toyland", device="meta"), "'meta'"),
    case("device cuda:99", lambda box: sfp.load_clip("Toyland", device="cuda:99"), "'cuda:99'"),
    case("precision a number", lambda box: sfp.load_clip("Toyland", precision=16), "precision 16"),
    case(
        "quick_gelu wrong",
        lambda box: sfp.load_clip("Toyland", quick_gelu=False),
        "quick_gelu=False",
    ),
    case("head_width 0", lambda box: sfp.load_clip("Toyland", head_width=0), "head_width=0"),
    case(
        "hash of other weights",
        lambda box: sfp.load_clip("Toyland", weights_sha256="0" * 64),
        "0000",
        "SHA-256",
    ),
    case("hash of other weights, shared CLIP", _option(weights_sha256="0" * 64), "0000", "SHA-256"),
    # results
    case("result absent", lambda box: Segmentation.load(box.place / "absent.npz"), "absent.npz"),
    case("result a picture", lambda box: Segmentation.load(box.place / "sound.jpg"), "sound.jpg"),
    case("result empty", lambda box: Segmentation.load(box.place / "zero.jpg"), "zero.jpg"),
    case(
        "result with a pickle",
        lambda box: Segmentation.load(_saved(box, labels=np.array([[Harm()]], object))),
        "made.npz",
    ),
    case(
        "result with labels above its names",
        lambda box: Segmentation.load(_saved(box, labels=np.full((4, 4), 7))),
        "labels from 7",
    ),
    case(
        "result of two sizes",
        lambda box: Segmentation.load(_saved(box, labels=np.zeros((3, 3)))),
        "(3, 3)",
    ),
    case("result saved as .gif", lambda box: box.result.save("x.gif"), "'.gif'"),
    case(
        "result saved below a file",
        lambda box: box.result.save(box.place / "file/x.npz"),
        "file can't be written",
    ),
    case("pixel outside", lambda box: box.result.at(-1, 0), "x=-1"),
    case("nothing to compare", lambda box: compare({}), "no result"),
    case("inspect a wrong box", lambda box: box.segmenter.inspect(box.image, box=(1, 2)), "(1, 2)"),
    *(
        case(f"inspect the box {corners}", _inspected(corners), "box is", "whole number")
        for corners in ((0.0, 0.0, 64.0, 64.0), (0, 0, NAN, 9), ("0", 0, 9, 9), (None, 0, 9, 9), 5)
    ),
    case("inspect by 5", lambda box: box.segmenter.inspect(box.image, detectors=5), "5"),
    *(
        case(f"a layer's {name}", _looked(name, *arguments), *words)
        for name, arguments, words in (
            ("pca", ("x",), ["layer is 'x'"]),
            ("pca", (1.0,), ["layer is 1.0"]),
            ("attention_of", (1, 3), ["patch is 3"]),
            ("attention_of", (1, (0.5, 0)), ["patch is (0.5, 0)"]),
            ("similarity", (1, (1, 2, 3)), ["no patch"]),
        )
    ),
    *(
        case(f"state dict {kind}", _weights(change), "visual.class_embedding", kind.split()[-1])
        for kind, change in (
            ("on meta", lambda tensor: tensor.to("meta")),
            ("as sparse", torch.Tensor.to_sparse),
            ("of int32", torch.Tensor.int),
        )
    ),
    case(
        "inspect by one text",
        lambda box: box.segmenter.inspect(box.image, detectors="SOM"),
        "'SOM'",
    ),
    case("inspect by a number", lambda box: box.segmenter.inspect(box.image, detectors=[3]), "3"),
]


@pytest.mark.parametrize(("call", "words"), PYTHON)
def test_python(call, words, box):
    with pytest.raises(SFPError) as error:
        call(box)
    check_sentence(str(error.value), *words)
    assert not left_over(box.place) and not HARM.exists()


def test_what_looks_bad_and_is_not(box):
    """Names with a byte order mark or Windows's line ends, pictures of one pixel, no pictures."""
    for content in (b"\xef\xbb\xbfsky\nsea\n", b"sky\r\nsea\r\n", b"sky\nsea\n\n\n"):
        (box.place / "odd.txt").write_bytes(content)
        assert Vocabulary.from_file(box.place / "odd.txt") == box.vocabulary
    pictures = [box.image, box.image[:60], np.zeros((1, 1, 3), np.uint8), box.image[:, :50]]
    assert [found.labels.shape for found in box.segmenter.many(pictures, ["sky", "sea"])] == [
        p.shape[:2] for p in pictures
    ]
    assert list(box.segmenter.many([], ["sky"])) == []
    assert (
        sfp.load_clip("Toyland", device="cpu", weights_sha256=box.clip.fingerprint).name
        == "Toyland"
    )


# ------------------------------------------------------------------------------------- checkpoints
HARM = Path(os.environ.get("TMPDIR", "/tmp")) / f"sfp_harm_{os.getpid()}"


class Harm:
    """A pickle that would make a folder."""

    def __reduce__(self):
        return os.mkdir, (str(HARM),)


@pytest.fixture(scope="module")
def weights():
    return parity.state_dict("vit12-p32")


def _zip(path: Path, **members: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"m/{name.replace('__', '/')}.pkl", content)


def _without(path: Path, member: str) -> None:
    """A zip archive without one of its members."""
    shutil.move(path, path.with_suffix(".whole"))
    with zipfile.ZipFile(path.with_suffix(".whole")) as whole, zipfile.ZipFile(path, "w") as made:
        for info in whole.infolist():
            if not info.filename.endswith(member):
                made.writestr(info, whole.read(info.filename))


def _half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


CONV, PROJ = "visual.conv1.weight", "visual.proj"
CHECKPOINTS = [
    case("zero bytes", lambda path, w: path.write_bytes(b""), "0 bytes"),
    case("words", lambda path, w: path.write_text("no weights"), "no PyTorch file"),
    case(
        "web page", lambda path, w: path.write_text("<!DOCTYPE html><html>404"), "no PyTorch file"
    ),
    case("cut short", lambda path, w: (torch.save(w, path), _half(path)), "cut short"),
    case(
        "zip without a member",
        lambda path, w: (torch.save(w, path), _without(path, "data/5")),
        "data/5",
    ),
    case("zip of something else", lambda path, w: _zip(path, readme=b"x"), "cut short"),
    case("a list", lambda path, w: torch.save([1, 2], path), "a list"),
    case("an empty dict", lambda path, w: torch.save({}, path), "an empty dict"),
    case(
        "extra keys",
        lambda path, w: torch.save({**w, "extra.weight": torch.zeros(3)}, path),
        "extra.weight",
    ),
    case(
        "a key missing",
        lambda path, w: torch.save({k: v for k, v in w.items() if k != PROJ}, path),
        "lacks visual.proj",
    ),
    case(
        "a block's key missing",
        lambda path, w: torch.save(
            {k: v for k, v in w.items() if "3.mlp.c_fc.bias" not in k}, path
        ),
        "3.mlp.c_fc.bias",
    ),
    case(
        "NaN", lambda path, w: torch.save({**w, PROJ: w[PROJ] * NAN}, path), "NaN or infinite", PROJ
    ),
    case(
        "infinite",
        lambda path, w: torch.save({**w, CONV: w[CONV] + INF}, path),
        "NaN or infinite",
        CONV,
    ),
    case("wrong shape", lambda path, w: torch.save({**w, PROJ: torch.zeros(7, 64)}, path), PROJ),
    case(
        "too few axes",
        lambda path, w: torch.save({**w, PROJ: torch.zeros(7)}, path),
        PROJ,
        "2 axes",
    ),
    case(
        "no axes",
        lambda path, w: torch.save({**w, "ln_final.weight": torch.tensor(1.0)}, path),
        "ln_final.weight",
    ),
    case("no numbers", lambda path, w: torch.save({**w, PROJ: torch.zeros(128, 0)}, path), PROJ),
    case(
        "whole numbers",
        lambda path, w: torch.save({**w, PROJ: w[PROJ].to(torch.int8)}, path),
        PROJ,
        "int8",
    ),
    case(
        "complex numbers",
        lambda path, w: torch.save({**w, PROJ: w[PROJ].to(torch.complex64)}, path),
        PROJ,
        "complex64",
    ),
    case("sparse", lambda path, w: torch.save({**w, PROJ: w[PROJ].to_sparse()}, path), PROJ),
    case(
        "grid not square",
        lambda path, w: torch.save(
            {**w, "visual.positional_embedding": torch.zeros(12, 128)}, path
        ),
        "11 patches",
    ),
    case(
        "ResNet CLIP",
        lambda path, w: torch.save({"visual.layer1.0.conv1.weight": torch.zeros(1)}, path),
        "a ResNet CLIP",
    ),
    case(
        "Hugging Face's layout",
        lambda path, w: torch.save({"vision_model.embeddings.x": torch.zeros(1)}, path),
        "Hugging Face's layout",
    ),
    case("SigLIP", lambda path, w: torch.save({"logit_bias": torch.zeros(1)}, path), "a SigLIP"),
    case(
        "pickle that runs code",
        lambda path, w: path.write_bytes(pickle.dumps(Harm())),
        "plain weights",
    ),
    case("zip that runs code", lambda path, w: torch.save({"a": Harm()}, path), "posix.mkdir"),
    case(
        "TorchScript that runs code",
        lambda path, w: _zip(path, data=pickle.dumps(Harm()), constants=b""),
        "posix.mkdir",
    ),
    case(
        "TorchScript's constants that run code",
        lambda path, w: _zip(path, constants=pickle.dumps(Harm())),
        "data.pkl",
    ),
    case(
        "TorchScript of nonsense",
        lambda path, w: _zip(path, data=b"\x80\x02garbage", constants=b""),
        "cut short",
    ),
    case(
        "TorchScript that builds on a number",
        lambda path, w: _zip(path, data=b"I1\n}b.", constants=b""),
        "cut short",
    ),
]


@pytest.mark.parametrize(("make", "words"), CHECKPOINTS)
def test_checkpoint(make, words, weights, tmp_path):
    path = tmp_path / "given.pt"
    make(path, weights)
    with pytest.raises(SFPError) as error:
        sfp.load_clip(pretrained=path, device="cpu", quick_gelu=True, head_width=64)
    check_sentence(str(error.value), "given.pt", *words)
    assert not HARM.exists()


@pytest.mark.parametrize("content", ["half", "nonsense", "absent"])
def test_safetensors(content, weights, tmp_path):
    path = tmp_path / "given.safetensors"
    if content == "half":
        save_file({key: value.contiguous() for key, value in weights.items()}, path)
        _half(path)
    elif content == "nonsense":
        path.write_bytes(b"\xff" * 64)
    with pytest.raises(SFPError) as error:
        sfp.load_clip(pretrained=path, device="cpu")
    check_sentence(str(error.value), "given.safetensors")


def test_weights_of_another_architecture(weights, tmp_path):
    torch.save(weights, tmp_path / "given.pt")
    with pytest.raises(SFPError) as error:
        sfp.load_clip("ViT-L/14", tmp_path / "given.pt", device="cpu")
    check_sentence(str(error.value), "given.pt", "not ViT-L/14")


# ----------------------------------------------------------------------------------------- dataset
def _label(values: np.ndarray | int, **options):
    """Write label b: an array, or the sound one with one pixel of a value."""

    def write(root: Path) -> None:
        path = root / "SegmentationClass/b.png"
        labels = np.array(Image.open(path)) if isinstance(values, int) else values
        if isinstance(values, int):
            labels[0, 0] = values
        Image.fromarray(labels).save(path, **options)

    return write


def _bytes(name: str, content: bytes | None):
    """Write a file, or cut it to half."""
    return lambda root: (
        _half(root / name) if content is None else (root / name).write_bytes(content)
    )


_LIST = "ImageSets/Segmentation/val.txt"
DATASET = [
    case("label out of range", _label(200), "b.png", "label 200"),
    case("label of 16 bits", _label(np.full((64, 80), 261, np.uint16)), "b.png", "label 261"),
    case("label with colours", _label(np.zeros((64, 80, 3), np.uint8)), "b.png", "RGB"),
    case(
        "label a JPEG inside", _label(np.zeros((64, 80), np.uint8), format="JPEG"), "b.png", "JPEG"
    ),
    case("label of another size", _label(np.zeros((60, 80), np.uint8)), "b.png", "(60, 80)"),
    case("label missing", lambda root: (root / "SegmentationClass/b.png").unlink(), "b.png"),
    case("image missing", lambda root: (root / "JPEGImages/b.jpg").unlink(), "b.jpg"),
    case("label zero bytes", _bytes("SegmentationClass/b.png", b""), "b.png"),
    case("image zero bytes", _bytes("JPEGImages/b.jpg", b""), "b.jpg"),
    case("image cut short", _bytes("JPEGImages/b.jpg", None), "b.jpg"),
    case("image of words", _bytes("JPEGImages/b.jpg", b"no picture"), "b.jpg"),
    case("list empty", _bytes(_LIST, b"\n"), "val.txt", "empty"),
    case("list missing", lambda root: (root / _LIST).unlink(), "val.txt"),
    case("list names an image twice", _bytes(_LIST, b"a\nb\na\n"), "val.txt"),
    case("list names what is not there", _bytes(_LIST, b"a\nc\n"), "c.jpg"),
    case(
        "labels' folder missing",
        lambda root: shutil.rmtree(root / "SegmentationClass"),
        "SegmentationClass",
    ),
]


@pytest.fixture
def spoilt(place, tmp_path):
    """A data root whose VOC 2012 has a fault."""

    def make(fault) -> Path:
        root = tmp_path / "data/VOCdevkit/VOC2012"
        shutil.copytree(place / "data/VOCdevkit/VOC2012", root)
        fault(root)
        return tmp_path / "data"

    return make


@pytest.mark.parametrize(("fault", "words"), DATASET)
def test_dataset_in_an_evaluation(fault, words, spoilt, fails):
    options = "model.clip=Toyland model.pretrained=toyland model.prompts=photo short_side=64"
    options += " test_dataloader.num_workers=0"
    fails(
        "test", f"VOC --work-dir work --fresh --cfg-options {options}", *words, data=spoilt(fault)
    )


@pytest.mark.parametrize(("fault", "words"), DATASET)
def test_dataset_checked(fault, words, spoilt, tool):
    """tools/check_dataset.py lists it, and ends with 1."""
    code, printed, error = tool(
        "check_dataset", "voc21", "--data", spoilt(fault), "--subset", "--workers", 1
    )
    assert (code, error) == (1, "")
    problems = [line for line in printed.splitlines() if line.startswith("problem: ")]
    name = re.sub(r" .*", "", words[0])
    assert any(name.rstrip(".jpgn") in line for line in problems), printed
    for line in problems:
        check_sentence(line)


def test_the_page_of_promises_has_these_numbers():
    """docs/trust.md counts the cases above: each is one wrong input and the words of its answer."""
    of = {
        "configs": len(CONFIG),
        "the command lines of the programs": len(COMMANDS),
        "grids": len(GRID),
        "Python": len(PYTHON),
        "checkpoints": len(CHECKPOINTS) + 4,  # three of safetensors, one of another architecture
        "datasets": 2 * len(DATASET),  # in an evaluation, and when they are checked
    }
    parts = [f"{count} of {what}" for what, count in of.items()]
    said = f"{sum(of.values())} cases over {len(of)} entry points: {', '.join(parts)}"
    text = (ROOT / "docs/trust.md").read_text(encoding="utf-8")
    assert said in text, f"write in docs/trust.md: {said}"
