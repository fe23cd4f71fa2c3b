"""The whole way on a pretended GPU: nothing meets what lies on another device, and the host waits
once a batch.
"""

from __future__ import annotations

import typing
import warnings

import numpy as np
import pytest
import tiny_sam
import torch
from mmseg.structures import SegDataSample
from pretended_device import PretendedCUDA, Tensors

import sfp
from sfp.clip.kernels import attend_explicitly, attend_with_rows
from sfp.datasets import toyland
from sfp.errors import SFPError
from sfp.evaluation.counts import count_image
from sfp.methods import METHODS
from sfp.methods.clearclip import ClearCLIP
from sfp.outliers import list_detectors
from sfp.page.backend import TOYLAND_OPTIONS
from sfp.segmentor import SFPSegmentor

NAMES = ["sky", "sea", "sand", "boat"]
SYNONYMS = ["sky", ["sea", "water"], "sand", "boat"]
IMAGE = toyland.make_scene("val", 10).image[:96, :130]
SMALL = dict(text_cache=False, prompts="photo", short_side=64, window=48, stride=32)


@pytest.fixture(scope="module")
def cuda():
    with PretendedCUDA(count=2) as device:
        yield device


@pytest.fixture(scope="module")
def clips(cuda):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {
            precision: sfp.load_clip("Toyland", device="cuda", precision=precision)
            for precision in ("fp32", "fp16", "bf16")
        }


def segmenter(method, clip, **options):
    options = {**SMALL, **TOYLAND_OPTIONS.get(method, {}), **options}
    if METHODS.get(method).whole_images:
        options["window"] = 0
    if method == "FLOSS":
        options["prompts"] = "imagenet80"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return sfp.Segmenter(method, clip, **options)


def waits(cuda, own, **asked) -> list:
    """Those of a picture, after one that made what is made once."""
    own(IMAGE, NAMES, **asked)
    cuda.waits.clear()
    own(IMAGE, NAMES, **asked)
    return cuda.waits


@pytest.mark.parametrize("method", METHODS.names())
@pytest.mark.filterwarnings("ignore")
def test_every_method_in_every_precision(method, cuda, clips, toyland_clip):
    expected = segmenter(method, toyland_clip)(IMAGE, NAMES, keep_scores=False).labels
    for precision, clip in clips.items():
        found = segmenter(method, clip)(IMAGE, NAMES)
        assert found.labels.dtype == np.int64 and found.scores.dtype == np.float32
        agree = (found.labels == expected).mean()
        assert agree >= (0.99 if precision == "fp32" else 0.9), precision


@pytest.mark.parametrize("pm", list_detectors())
def test_every_detector(pm, cuda, clips):
    given = dict(type=pm, **(dict(trees=2) if pm == "IsolationForest" else {}))
    for clip in clips.values():
        segmenter("SFP", clip, pm=given)(IMAGE, NAMES)


@pytest.mark.parametrize("method", ["SFP", "SC-CLIP", "ClearCLIP", "NACLIP", "SFP-release"])
def test_the_common_way_waits_once(method, cuda, clips):
    """For the labels, which bring along whether all was finite."""
    own = segmenter(method, clips["fp16"])
    found = waits(cuda, own, keep_scores=False)
    assert [(wait.what, wait.where.partition(":")[0]) for wait in found] == [("to", "transfer.py")]
    cuda.waits.clear()
    cuda.queries.clear()
    assert len(list(own.many([IMAGE] * 2, NAMES, keep_scores=False))) == 2
    assert len(cuda.waits) == 1 and not cuda.queries  # a batch of two pictures


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        (dict(), dict(keep_scores=True)),
        (dict(), dict(keep_scores="label", background=["background", "wall"], prob_thd=0.3)),
        (dict(), dict(background="nothing", prob_thd=0.3, keep_scores="label")),
        (dict(sigmoid=(100, -12)), dict(keep_scores=True)),
        (dict(refine=["PAMR:iterations=2", "TLP"]), dict()),
        (dict(registers=2), dict(keep_scores=False)),
    ],
)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_decoding_and_refiners(options, asked, precision, cuda, clips, toyland_clip):
    if "registers" in options:
        options["registers"] = dict(count=2, neurons={5: [1, 2]})
    found = segmenter("ClearCLIP", clips[precision], **options)(IMAGE, SYNONYMS, **asked)
    expected = segmenter("ClearCLIP", toyland_clip, **options)(IMAGE, SYNONYMS, **asked)
    assert (found.labels == expected.labels).mean() >= (0.99 if precision == "fp32" else 0.9)


@pytest.fixture(scope="module")
def sam(tmp_path_factory, cuda):
    folder = tmp_path_factory.mktemp("sam")
    tiny_sam.write_sam(folder)
    return str(folder)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.filterwarnings("ignore")
def test_sam_as_a_refiner_and_in_a_method(precision, sam, cuda, clips, toyland_clip):
    given = dict(type="SAM", sam=sam, coarse_thresh=0.0, iou_thresh=-1e3, minimal_area=4)
    image = toyland.make_scene("val", 10).image[::2, ::2]
    plain = segmenter("ClearCLIP", clips[precision])(image, NAMES).labels
    for method, options in (("ClearCLIP", dict(refine=[given])), ("Trident", dict(sam=sam))):
        expected = segmenter(method, toyland_clip, **options)(image, NAMES).labels
        found = segmenter(method, clips[precision], **options)(image, NAMES).labels
        assert (found == expected).mean() >= (0.99 if precision == "fp32" else 0.9), method
        assert (found != plain).mean() > 0.05, method


def test_a_planted_wait_is_seen(cuda, clips, monkeypatch):
    tokens = ClearCLIP.tokens

    def slow(self, windows):
        found = tokens(self, windows)
        found.cpu()
        return found

    monkeypatch.setattr(ClearCLIP, "tokens", slow)
    own = segmenter("ClearCLIP", clips["fp32"])
    assert len(waits(cuda, own, keep_scores=False)) == 2


@pytest.mark.parametrize(
    "read",
    [
        lambda x: bool((x > 0).any()),
        lambda x: float(x.sum()),
        lambda x: x.sum().item(),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: x.flatten().tolist(),
        lambda x: x.long().unique(),
        lambda x: torch.tensor([1.0], device=x.device),
        lambda x: torch.zeros(3).to(x.device),
        lambda x: torch.where(x > 0),
    ],
)
def test_what_waits_is_counted(read, cuda):
    x = torch.ones(2, 3, device="cuda")
    cuda.waits.clear()
    read(x)
    assert len(cuda.waits) == 1
    cuda.waits.clear()
    x.masked_fill(x > 0, 0.0).softmax(-1).topk(1)
    torch.zeros(3).pin_memory().to("cuda", non_blocking=True)
    assert not cuda.waits


def test_a_tensor_on_the_wrong_device_is_refused(cuda, clips, monkeypatch):
    tokens = ClearCLIP.tokens
    monkeypatch.setattr(ClearCLIP, "tokens", lambda self, w: tokens(self, w) * torch.ones(1))
    with pytest.raises(RuntimeError, match="at least two devices, cpu and cuda:0"):
        segmenter("ClearCLIP", clips["fp32"])(IMAGE, NAMES)
    x = torch.ones(3, device="cuda")
    with pytest.raises(TypeError, match="to numpy"):
        x.numpy()
    with pytest.raises(RuntimeError, match="two devices, cuda:0 and cuda:1"):
        _ = x + torch.ones(3, device="cuda:1")
    with pytest.raises(AssertionError, match="TF32"):
        torch.nn.functional.conv2d(torch.ones(1, 1, 4, 4, device="cuda"), x[:1].view(1, 1, 1, 1))


def test_the_second_gpu_is_used_alone(cuda):
    clip = sfp.load_clip("Toyland", device="cuda:1", precision="fp32")
    own = segmenter("SFP", clip)
    assert own(IMAGE, NAMES).labels.shape == IMAGE.shape[:2]
    assert own.pipeline.device == torch.device("cuda:1")
    with pytest.raises(SFPError, match="'cuda:0' to 1"):
        sfp.load_clip("Toyland", device="cuda:2")


@torch.inference_mode()
def test_attention_before_ampere(cuda, monkeypatch):
    """In bfloat16 there is no memory-efficient kernel."""
    monkeypatch.setattr(cuda, "capability", (7, 5))
    q, k, v = (torch.randn(1, 2, 20, 16).to(torch.bfloat16) for _ in range(3))
    expected, rows, _ = attend_explicitly(q, k, v, mean=False)
    found, own = attend_with_rows(*(u.to("cuda") for u in (q, k, v)))
    assert isinstance(found, Tensors) and torch.equal(found.cpu(), expected)
    assert torch.equal(own.diagonal.cpu(), rows.diagonal)


def test_labels_where_memory_is_short(cuda, clips, monkeypatch):
    """Tiles of scores are made by halves; what is too large still is a sentence."""
    image = np.tile(IMAGE, (3, 4, 1))
    names = [f"thing {i}" for i in range(40)]
    own = segmenter("ClearCLIP", clips["fp32"])
    whole = own(image, names, keep_scores=False).labels
    canvas = 4 * len(names) * image.shape[0] * image.shape[1]
    monkeypatch.setattr(cuda, "memory", canvas // 4)
    assert (own(image, names, keep_scores=False).labels == whole).mean() > 0.999
    own = segmenter("ClearCLIP", clips["fp32"], refine=["PAMR:iterations=1"])
    with pytest.raises(SFPError, match=r"labels of 520x288 .* not fit into the memory of cuda:0"):
        own(image, names, keep_scores=False)


def test_the_segmentor_stays_where_its_config_says(cuda):
    """mmengine's runner moves every model to the current GPU."""
    given = dict(clip="Toyland", pretrained="openai", names=["sky", "sea"], method="ClearCLIP")
    given |= dict(window=64, stride=32, text_cache=False, prompts="photo", precision="fp32")
    image = torch.zeros(3, 64, 96)
    sample = SegDataSample(metainfo=dict(ori_shape=(64, 96), img_shape=(64, 96)))
    for device, expected in (("cuda:1", "cuda:1"), ("cpu", "cpu"), (None, "cuda:0")):
        model = SFPSegmentor(**given, device=device).to("cuda:0")
        assert model.pipeline.device == torch.device(expected)
        batch = model.data_preprocessor(dict(inputs=[image], data_samples=[sample]))
        (found,) = model.predict(**{k: batch[k] for k in ("inputs", "data_samples")})
        assert found.pred_sem_seg.data.shape == (1, 64, 96)
    assert model.to("cuda:1").pipeline.device == torch.device("cuda:1")
    model.predict([image], [sample])


def test_counting_waits_once(cuda):
    truth = torch.randint(0, 5, (40, 30))
    truth[:3] = 255
    found = torch.randint(0, 5, (40, 30))
    moved = found.to("cuda")
    cuda.waits.clear()
    assert np.array_equal(count_image(moved, truth, 5), count_image(found, truth, 5))
    assert len(cuda.waits) == 1


def choices(method: str) -> list[tuple[str, typing.Any]]:
    """The options of a method that take one of a few values, each with a value that isn't usual."""
    hints = typing.get_type_hints(METHODS.get(method), include_extras=True)
    usual, found = METHODS.options(method), []
    for option in METHODS.get(method).__annotations__:
        if typing.get_origin(hints.get(option)) is typing.Literal:
            values = typing.get_args(hints[option])
        else:
            values = (True, False) if hints.get(option) is bool else ()
        found += [(option, value) for value in values if value != usual.get(option)]
    return found


@pytest.mark.filterwarnings("ignore")
def test_every_choice_of_a_method_in_half_precision():
    """On the CPU, which refuses products of two types as a GPU does."""
    clip = sfp.load_clip("Toyland", device="cpu", precision="bf16")
    windows = torch.randn(1, 3, 48, 48)
    wrong = []
    for method in METHODS.names():
        given = TOYLAND_OPTIONS.get(method, {})
        for option, value in choices(method):
            try:
                own = sfp.build_method(method, clip, **{**given, option: value})
            except SFPError:  # it needs another option, or a model
                continue
            try:
                own(windows)
            except RuntimeError as error:
                wrong.append(f"{method} {option}={value}: {error}")
    assert not wrong
