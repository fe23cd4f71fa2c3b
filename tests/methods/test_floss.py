"""FLOSS: the authors' code, the ranking of prompts and its program, what it refuses."""

from __future__ import annotations

import json

import numpy as np
import parity
import pytest
import torch
from conftest import parity_clip, write_ranking

import sfp
from sfp.clip.prompts import IMAGENET_PROMPTS
from sfp.clip.text_bank import TextBank
from sfp.datasets import toyland
from sfp.errors import SFPError
from sfp.experiments.prompt_ranking import Journal, prompt_entropies, ranked
from sfp.methods import build_method, list_methods
from sfp.methods._wrapper import Wrapper
from sfp.methods.floss import FLOSS, take_surer
from sfp.pipeline import Pipeline, Protocol
from sfp.pipeline.decode import decode
from sfp.stages import Text, View

INDEX = parity.read_index("index_clip_only")
FILE = INDEX["files"].get("floss", dict(settings={}))
FUSIONS = [case for case, own in FILE["settings"].items() if "base" in own]
pytestmark = pytest.mark.filterwarnings("ignore:FreeCP has no sentences")


class GivenExperts(FLOSS):
    """FLOSS with the golden's experts, one for each query."""

    def experts(self, text: Text) -> torch.Tensor:
        return torch.from_numpy(parity.golden("floss")["experts"][:-1])

    def score(self, view: View, text: Text) -> torch.Tensor:
        return self.fuse(view, text, self.experts(text), range(len(text)))


def test_the_rule_equals_official_code_on_random_probabilities():
    arrays = parity.golden("floss")
    default, fused = (
        torch.from_numpy(arrays[f"fusion/{name}"]).permute(0, 2, 3, 1)
        for name in ("default", "fused")
    )
    chosen, surest = default.clone(), torch.zeros(default.shape[:3])
    for number, maps in enumerate(torch.from_numpy(arrays["fusion/experts"])):
        own = torch.arange(default.shape[-1]) == number
        take_surer(chosen, surest, maps.permute(0, 2, 3, 1), own)
    torch.testing.assert_close(chosen, fused, atol=5e-5, rtol=0)


def pipeline_of(method, scale: float) -> Pipeline:
    bank = TextBank(method.clip, cache_dir=False)
    return Pipeline(method, bank, Protocol(window=224, stride=112, logit_scale=scale))


def picture(case: str) -> torch.Tensor:
    own = FILE["settings"][case]
    with parity.seeded(INDEX["seed"]):
        return parity.image(own["image"], *own["size"])


@pytest.mark.parametrize("together", [False, True], ids=["alone", "batch"])
@pytest.mark.parametrize("case", FUSIONS)
@torch.inference_mode()
def test_whole_pictures_equal_official_code(case, together):
    arrays, own = parity.golden("floss"), FILE["settings"][case]
    clip = parity_clip("vit12", INDEX["seed"])
    method = GivenExperts(clip, base=own["base"], fusion_scale=float(own["logit_scale"]))
    vectors = torch.from_numpy(arrays["experts"][-1])
    text = Text(vectors, class_of_query=tuple(own["idx"]))
    pipeline, images = pipeline_of(method, float(own["logit_scale"])), [picture(case)]
    if together:
        with parity.seeded(INDEX["seed"]):
            images.insert(0, parity.image("beside", *own["size"]))
    view = pipeline.views(images)[-1]
    scores = pipeline.score(view, text)
    steady = arrays[f"{case}/steady"].astype(bool)
    size = tuple(own["ori_shape"])
    found = scores.resized(size).canvas()[:, ::9, ::9].numpy()[:, steady]
    np.testing.assert_allclose(found, arrays[f"{case}/fused"][:, steady], atol=5e-5, rtol=0)
    window = method.score(view, text)[0, ::8, ::8].permute(2, 0, 1)
    np.testing.assert_allclose(window, arrays[f"{case}/window0"], atol=5e-5, rtol=0)
    labels, _ = decode(
        scores.resized(size), torch.tensor(own["idx"]), logit_scale=float(own["logit_scale"])
    )
    expected = arrays[f"{case}/labels"]
    sure = np.unpackbits(arrays[f"{case}/sure"])[: expected.size].reshape(expected.shape) > 0
    np.testing.assert_array_equal(labels.numpy()[sure], expected[sure])


@torch.inference_mode()
def test_entropies_of_prompts_equal_official_code():
    arrays, (case, *_) = parity.golden("floss"), FUSIONS
    own, name = FILE["settings"][case], case.split("/")[0]
    method = build_method(own["base"], parity_clip("vit12", INDEX["seed"]))
    pipeline, text = (
        pipeline_of(method, float(own["logit_scale"])),
        Text(torch.from_numpy(arrays["experts"][-1])),
    )
    (view,) = pipeline.views([picture(case)])
    templates = torch.from_numpy(arrays["templates"])
    size = tuple(own["ori_shape"])
    sums, counts = prompt_entropies(
        pipeline, view, text, templates, size, float(own["logit_scale"])
    )
    np.testing.assert_allclose(
        sums / counts.clamp(min=1), arrays[f"{name}/entropy_mean"], atol=1e-4, rtol=0
    )
    assert np.abs(counts.numpy() - arrays[f"{name}/pixel_count"]).max() <= 10
    for vectors, expected in zip(templates, arrays[f"{name}/metric_prob"], strict=True):
        canvas = pipeline.score(view, Text(vectors)).resized(size).canvas()
        probabilities = (own["logit_scale"] * canvas).softmax(0)[:, ::15, ::15]
        np.testing.assert_allclose(probabilities, expected, atol=1e-4, rtol=0)


def test_ranked_prompts_are_by_entropy_then_by_number():
    sums = torch.tensor([[2.0, 0.0], [1.0, 3.0], [2.0, 1.0]], dtype=torch.float64)
    counts = torch.tensor([[2, 0], [2, 6], [2, 2]])
    found = ranked(sums, counts, ["cat", "dog"])
    assert [row["template_id"] for row in found["cat"]] == [1, 0, 2]
    assert [row["template_id"] for row in found["dog"]] == [0, 1, 2]
    assert found["dog"][0]["pixel_percentage"] == 0 and found["dog"][1]["entropy"] == 0.5
    assert found["cat"][0] == dict(template_id=1, entropy=0.5, pixel_percentage=25.0, rank=0)


NAMES = ["sky", ["sea", "ocean"], "sand"]


@pytest.fixture
def file(tmp_path, toyland_clip):
    """A made-up ranking: class k's best prompts are 5 k and what follows; "sand" has none."""
    return write_ranking(tmp_path / "ranking.json", toyland_clip, ["sky", "sea", "sand"])


def test_experts_are_the_mean_of_each_class_best_prompts(file, toyland_clip):
    bank = TextBank(toyland_clip, cache_dir=False)
    words, classes = ("sky", "sea", "ocean", "sand"), (0, 1, 1, 2)
    text = Text(bank.encode(words), words, classes, bank)
    experts = build_method("FLOSS", toyland_clip, ranking=str(file), top_n=2).experts(text)
    assert experts.shape == (3, 4, toyland_clip.embed_dim)
    for number, prompts in enumerate(([0, 1], [5, 6])):
        few = TextBank(toyland_clip, [IMAGENET_PROMPTS[i] for i in prompts], cache_dir=False)
        torch.testing.assert_close(experts[number], few.encode(words))
    torch.testing.assert_close(experts[2], text.vectors)  # no prompt reads it anywhere


@torch.inference_mode()
def test_fusion_of_any_grid_equals_the_slow_reading(file, toyland_clip):
    """All experts at once, pixel by pixel, of a base that scores at pixels and one on patches."""
    clip = toyland_clip
    bank = TextBank(clip, cache_dir=False)
    words, classes = ("sky", "sea", "ocean", "sand"), (0, 1, 1, 2)
    text = Text(bank.encode(words), words, classes, bank)
    windows = torch.stack([parity.image(f"rect.{i}", 64, 96) for i in range(2)])
    for base in ("ClearCLIP", "CLIPtrase:cluster_vote=mean"):
        write_ranking(file, clip, ["sky", "sea", "sand"], base.partition(":")[0])
        method = build_method("FLOSS", clip, base=base, ranking=str(file))
        found = method.scores(windows, text)
        maps = []
        for vectors in (*method.experts(text), text.vectors):
            scores = method.wrapped.scores(windows, Text(vectors, words, classes, bank))
            p = (100 * scores).softmax(-1).permute(0, 3, 1, 2)
            p = torch.nn.functional.interpolate(p, size=(64, 96), mode="bilinear")
            maps.append(p.permute(0, 2, 3, 1))
        for place in np.ndindex(2, 64, 96):
            rows = [own[place] for own in maps]
            hits = [q for q in range(4) if int(rows[classes[q]].argmax()) == q]
            best = max(hits, key=lambda q: float(rows[classes[q]][q]), default=None)
            expected = rows[-1] if best is None else rows[classes[best]]
            if not torch.allclose(found[place], expected, atol=1e-4):
                near = sorted(float(rows[classes[q]].topk(2).values.diff()) for q in range(4))
                assert any(abs(gap) < 1e-3 for gap in near), place


class TestProgram:
    OPTIONS = (
        "test_dataloader.dataset.split=tune",
        "test_dataloader.dataset.scenes=2",
        "short_side=112",
        "model.window=112",
        "model.stride=112",
    )

    def rank(self, tool, folder, *options: str, images: int = 2):
        data = f"test_dataloader.dataset.data_root={folder}"
        prompts = "model.prompts=['a {}.','the {}.','my {}.']"
        return tool(
            "rank_prompts", "configs/cfg_toyland.py", "--out", folder / "ranking.json",
            "--images", images, "--cfg-options", data, prompts, *self.OPTIONS, *options,
        )  # fmt: skip

    def test_an_interrupted_ranking_goes_on_to_the_same_file(self, tool, tmp_path):
        code, _, error = self.rank(tool, tmp_path)
        assert code == 0, error
        (whole,) = json.loads((tmp_path / "ranking.json").read_text()).values()
        assert list(whole["classes"]) == list(toyland.CLASSES) and whole["images"] == 2
        run = {key: value for key, value in whole.items() if key not in ("classes", "dataset")}
        names = [f"JPEGImages/{path.name}" for path in sorted((tmp_path / "JPEGImages").iterdir())]
        journal = Journal(tmp_path / "ranking.json.images", {**run, "images": names})
        size = (3, len(toyland.CLASSES))
        given = torch.ones(size, dtype=torch.float64), torch.full(size, 7)
        journal.add(names[0], *given)
        with journal.file.open("a") as out:
            out.write("0123456789abcdef [cut")
        assert self.rank(tool, tmp_path)[0] == 0
        (again,) = json.loads((tmp_path / "ranking.json").read_text()).values()
        assert again != whole  # the first image's made-up sums were taken
        assert not journal.file.exists()
        assert self.rank(tool, tmp_path)[0] == 0
        assert [whole] == list(json.loads((tmp_path / "ranking.json").read_text()).values())

        image = toyland.make_scene("tune", 0).image
        options = dict(
            ranking=str(tmp_path / "ranking.json"), prompts=["a {}.", "the {}.", "my {}."]
        )
        segmenter = sfp.Segmenter("FLOSS", "Toyland", device="cpu", **options)
        assert segmenter(image, ["sea", "sky"]).labels.max() == 1  # some of the ranked classes
        with pytest.raises(SFPError, match="has no class 'whale'"):
            segmenter(image, ["sea", "whale"])

    def test_another_run_does_not_go_on_with_its_images(self, tool, tmp_path):
        Journal(tmp_path / "ranking.json.images", dict(weights_sha256="0"))
        code, _, error = self.rank(tool, tmp_path)
        assert code == 2 and "is of a ranking of other weights" in error
        code, _, error = self.rank(tool, tmp_path, images=0)
        assert code == 2 and "--images is 0" in error


def test_the_shipped_ranking_is_of_the_shipped_weights(toyland_clip):
    """Made again with tools/rank_prompts.py when the weights change."""
    from sfp.page.backend import TOYLAND_OPTIONS

    options = TOYLAND_OPTIONS["FLOSS"]
    names = list(toyland.CLASSES)
    segmenter = sfp.Segmenter("FLOSS", toyland_clip, **options)
    assert segmenter(toyland.make_scene("tune", 1).image, names).areas


class TestMistakes:
    def test_no_ranking(self, toyland_clip):
        segmenter = sfp.Segmenter("FLOSS", toyland_clip)
        with pytest.raises(SFPError, match=r"FLOSS has no ranking.*tools/rank_prompts.py"):
            segmenter(toyland.make_scene("tune", 0).image, ["sky"])

    def test_other_weights(self, file, clip):
        with pytest.raises(SFPError, match="has none of these weights"):
            build_method("FLOSS", clip, ranking=str(file))

    def test_other_prompts(self, file, toyland_clip):
        segmenter = sfp.Segmenter("FLOSS", toyland_clip, ranking=str(file), prompts=["a {}."])
        with pytest.raises(SFPError, match="is of other prompts than these"):
            segmenter(toyland.make_scene("tune", 0).image, ["sky"])

    @pytest.mark.parametrize(
        ("change", "options", "words"),
        [
            ({}, dict(base="ClearCLIP"), "is of the base NACLIP, not of ClearCLIP"),
            (dict(base=None), {}, "is of the base None"),
            (dict(classes=3), {}, "ranking.json can't be read"),
            ({}, dict(ranking="absent.json"), "absent.json can't be read"),
            ({}, dict(base="NACLIPP"), "Unknown method 'NACLIPP'; did you mean 'NACLIP'"),
            ({}, dict(base=None), "base of method FLOSS is None; give a text"),
            ({}, dict(base="FreeCP"), "base of FLOSS is FreeCP, whose scores are no cosines"),
            ({}, dict(base="NACLIP:sigmas=3"), "Unknown option of method NACLIP 'sigmas'"),
            ({}, dict(sigma=3.0), "sigma is an option of the base NACLIP, not of FLOSS"),
            ({}, dict(top_n=0), "top_n of method FLOSS is 0"),
            ({}, dict(rp_thres=0.1), "Unknown option of method FLOSS 'rp_thres'"),
        ],
    )
    def test_one_sentence_each(self, change, options, words, file, toyland_clip):
        key, own = toyland_clip.fingerprint, json.loads(file.read_text())
        file.write_text(json.dumps({key: {**own[key], **change}}))
        with pytest.raises(SFPError) as caught:
            build_method("FLOSS", toyland_clip, **{"ranking": str(file), **options})
        assert words in str(caught.value) and "\n" not in str(caught.value)


def test_it_wraps_every_method_that_is_no_wrapper(toyland_clip, tmp_path):
    from sfp.page.backend import TOYLAND_OPTIONS

    words = ("sky", "sea", "sand")
    bank = TextBank(toyland_clip, cache_dir=False)
    text = Text(bank.encode(words), words, bank=bank)
    window = parity.image("rect.0", 64, 96)[None]
    for name in filter(Wrapper.can_wrap, list_methods()):
        file = write_ranking(tmp_path / "ranking.json", toyland_clip, words, base=name)
        base = dict(type=name, **TOYLAND_OPTIONS.get(name, {}))
        scores = build_method("FLOSS", toyland_clip, base=base, ranking=str(file)).scores(
            window, text
        )
        assert scores.shape == (1, 64, 96, 3), name
        torch.testing.assert_close(scores.sum(-1), torch.ones(1, 64, 96), atol=1e-4, rtol=0)
