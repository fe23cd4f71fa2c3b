"""CLIP-DINOiser: the authors' outputs, a slow reading, background, teacher, file and mistakes."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import second_backbone as golden
import torch
import torch.nn.functional as F
from conftest import ROOT
from mmengine.config import Config
from safetensors.torch import save_file

import sfp
from sfp.clip.clip import l2_normalise
from sfp.datasets import toyland
from sfp.errors import SFPError
from sfp.evaluation.provenance import weight_files
from sfp.methods import build_method
from sfp.methods._pixels import pad_to_patches
from sfp.pipeline import Pipeline, Protocol

CASES = golden.settings("clip_dinoiser")
BACKGROUND = ("background", "sky", "sea")


def convolutions(width: int, hidden: int = 32) -> dict[str, torch.Tensor]:
    """The made-up ones of the goldens."""

    def normal(name: str, *shape: int, std: float) -> torch.Tensor:
        return torch.from_numpy(golden.normal(f"dinoiser.{name}", *shape, std=std)).float()

    return {
        "obj_proj.weight": normal(
            "obj.weight", hidden, width, 3, 3, std=(9 * width) ** -0.5
        ),
        "obj_proj.bias": normal("obj.bias", hidden, std=0.05),
        "bkg_decoder.weight": normal("bkg.weight", 1, width, 1, 1, std=3.0),
        "bkg_decoder.bias": normal("bkg.bias", 1, std=0.1),
    }  # fmt: skip


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """In the published layout, of width 128."""
    path = tmp_path_factory.mktemp("dinoiser") / "last.pt"
    torch.save({"epoch": 3, "model_state_dict": convolutions(128)}, path)
    return path


def build(case: str, file, **options):
    own = CASES[case]
    options = dict(gamma=own["gamma"], delta=own["delta"], background=own["apply_found"]) | options
    return build_method(
        "CLIP-DINOiser", golden.clip_of(case), dinoiser_weights=str(file), **options
    )


def window_of(case: str) -> torch.Tensor:
    own = CASES[case]
    return golden.clip_of(case).normalise(255 * golden.pixels(own["image"], *own["size"]))


@pytest.mark.parametrize("case", sorted(CASES))
@torch.inference_mode()
def test_equals_official_code(case, file):
    arrays, method, text = golden.golden("clip_dinoiser", case), build(case, file), golden.text()
    window, tok = window_of(case)[None], arrays["tok"]
    padded = pad_to_patches(method.clip, window, 16)
    pooled, a = method.pooled(padded)
    model, plain = method.backbones["dinoiser"], super(type(method), method).features(padded)
    golden.close(plain[0].flatten(0, 1)[tok], arrays["maskclip_feat"], 5e-5)
    golden.close(pooled[0].flatten(0, 1)[tok], arrays["feat"], 5e-5)
    o = F.normalize(model(a)[0].flatten(1), dim=0)
    golden.close((o.T @ o)[tok[::3]], arrays["corr"], 1e-5)
    golden.close(model.foreground(a), arrays["background"], 1e-4)
    golden.close(
        (l2_normalise(pooled) @ text.vectors.T)[0].permute(2, 0, 1), arrays["logits"], 1e-5
    )
    golden.close(method.scores(window, text)[0].permute(2, 0, 1), arrays["out"], 1e-4)
    without = build(case, file, background=False).scores(window, text)
    golden.close(without[0].permute(2, 0, 1), arrays["prob"], 1e-4)


@pytest.mark.parametrize("case", ["vit12/win", "vit12/found"])
@torch.inference_mode()
def test_each_window_as_alone_in_a_batch(case, file):
    """Two images through the pipeline; the authors' background rule flattens the batch."""
    method, other = build(case, file), "vit12/found" if case == "vit12/win" else "vit12/win"
    images, arrays = [window_of(case), window_of(other)], golden.golden("clip_dinoiser", case)
    pipeline = Pipeline(method, None, Protocol())
    first, second = pipeline.views(images)
    golden.close(method.score(first, golden.text())[0].permute(2, 0, 1), arrays["out"], 1e-4)
    alone = method.scores(images[1][None], golden.text())
    torch.testing.assert_close(method.score(second, golden.text()), alone, atol=1e-5, rtol=0)
    # averages of probabilities, each label the largest
    scores = pipeline.score(first, golden.text()).canvas()
    wanted = F.interpolate(torch.from_numpy(arrays["out"])[None], size=(224, 224), mode="bilinear")
    golden.close(scores, wanted[0].numpy(), 1e-4)


@torch.inference_mode()
def test_a_plain_reading(clip, file):
    """Loops over patches and neighbours; C is cut below gamma, the first convolution's border is
    repeated, the second reads unit vectors; block 10 of 12 is read before its MLP.
    """
    weights = {k: v.double().numpy() for k, v in convolutions(128).items()}
    method = build_method(
        "CLIP-DINOiser", clip, dinoiser_weights=str(file), gamma=0.3, scale=20.0, background=True
    )
    window = golden.picture("dinoiser.s.found.0", 64, 80)[None]
    f = build_method("MaskCLIP", clip, positional_resize="size")(window)[0].flatten(0, 1).numpy()
    block = clip.trunk.blocks[9]
    q, k, v = block.qkv(block.normed(stream := clip.trunk.run(window, last=9, resize="size")))
    attention = (q @ k.mT / 8).softmax(-1)
    u = stream + block.project(attention @ v)
    a = F.layer_norm(u, (128,), block.norm_2.weight, block.norm_2.bias)[0, 1:]
    a = a.unflatten(0, (4, 5)).double().numpy()
    o, foreground = np.zeros((4, 5, 32)), np.zeros((4, 5))
    for y, x in np.ndindex(4, 5):
        for dy, dx in np.ndindex(3, 3):
            near = a[np.clip(y + dy - 1, 0, 3), np.clip(x + dx - 1, 0, 4)]
            o[y, x] += weights["obj_proj.weight"][:, :, dy, dx] @ near
        o[y, x] += weights["obj_proj.bias"]
        unit = a[y, x] / np.linalg.norm(a[y, x])
        foreground[y, x] = weights["bkg_decoder.weight"][0, :, 0, 0] @ unit
    foreground += weights["bkg_decoder.bias"]
    o = o.reshape(20, 32) / np.linalg.norm(o.reshape(20, 32), axis=1, keepdims=True)
    c = o @ o.T
    c[c < 0.3] = 0
    pooled = c @ f / (c.sum(1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(method(window)[0].flatten(0, 1), pooled, atol=2e-5)
    text = golden.text()
    pooled /= np.linalg.norm(pooled, axis=1, keepdims=True)
    p = np.exp(20 * pooled @ text.vectors.numpy().T)
    p /= p.sum(1, keepdims=True)
    p[(p.max(1) < 0.99) & (foreground.ravel() <= 0), 0] = 1.0
    assert 0 < (p[:, 0] == 1).sum() < 20
    np.testing.assert_allclose(method.scores(window, text)[0].flatten(0, 1), p, atol=1e-4)


@torch.inference_mode()
def test_the_teacher(clip):
    """Another model's map in the place of the first convolution, resized to CLIP's grid."""
    window = golden.picture("rect.0", 96, 128)[None]
    plain = build_method("MaskCLIP", clip, positional_resize="size")(window)[0].flatten(0, 1)
    maps = torch.randn(1, 5, 12, 16)
    method = build_method("CLIP-DINOiser", clip, dinoiser=lambda windows: maps, gamma=0.4)
    o = F.interpolate(maps, size=(6, 8), mode="bilinear")[0].flatten(1)
    c = F.normalize(o, dim=0).T @ F.normalize(o, dim=0)
    c = torch.where(c < 0.4, 0, c)
    wanted = c @ plain / c.sum(1, keepdim=True)
    torch.testing.assert_close(method(window)[0].flatten(0, 1), wanted, atol=1e-4, rtol=1e-4)
    odd = build_method("CLIP-DINOiser", clip, dinoiser="colour")
    assert odd.scores(golden.picture("rect.0", 90, 70)[None], golden.text()).shape == (1, 6, 5, 7)


def test_probabilities_are_averaged_and_decided_as_they_are(toyland_clip, file):
    """Of two words of a background the first takes it; a class has its best word's probability."""
    image = toyland.make_scene("tune", 1).image[80:208, 60:220]
    options = dict(short_side=112, window=96, stride=48, dinoiser_weights=str(file))
    names = [["background", "nothing"], "sky", "sea", "house"]
    plain = sfp.Segmenter("CLIP-DINOiser", toyland_clip, prompts="photo", **options)
    probabilities = plain(image, names).scores
    assert probabilities.shape == (4, 128, 160) and probabilities.max() <= 1 + 1e-5
    ruled = sfp.Segmenter(
        "CLIP-DINOiser", toyland_clip, prompts="photo", background=True, **options
    )
    found = ruled(image, names)
    assert (found.labels == 0).mean() > (plain(image, names).labels == 0).mean()
    assert np.array_equal(found.labels, found.scores.argmax(0))
    np.testing.assert_allclose(found.scores[1:], probabilities[1:], atol=1e-5)


def test_wrappers_get_its_cosines(clip, file):
    window, text = golden.picture("rect.0", 96, 128)[None], golden.text()
    options = dict(dinoiser_weights=str(file))
    base = build_method("CLIP-DINOiser", clip, **options)
    method = build_method("LPOSS", clip, base=dict(type="CLIP-DINOiser", **options), dino="colour")
    assert set(method.backbones) == {"dinoiser", "dino"}
    cosines = l2_normalise(base(window)) @ text.vectors.T
    torch.testing.assert_close(method.wrapped.scores(window, text), base.scores(window, text))
    (view,) = Pipeline(method, None, Protocol(window=0)).views([window[0]])
    torch.testing.assert_close(method.wrapped.cosines(view, text), cosines)
    assert torch.isfinite(method.score(view, text)).all()


class TestFile:
    def test_both_kinds_are_one_model_and_part_of_the_provenance(self, file, clip, tmp_path):
        plain, other = tmp_path / "convolutions.safetensors", tmp_path / "other.pt"
        save_file(convolutions(128), plain)
        changed = convolutions(128)
        changed["bkg_decoder.bias"] += 1
        torch.save(changed, other)
        prints = []
        for path in (file, plain, other):
            method = build_method("CLIP-DINOiser", clip, dinoiser_weights=str(path))
            prints.append(method.backbones["dinoiser"].fingerprint)
        assert prints[0] == prints[1] != prints[2] and len(prints[0]) == 64
        model = dict(clip="Toyland", method="CLIP-DINOiser", dinoiser_weights=str(other))
        before = weight_files(Config(dict(model=model)))
        assert set(before) == {"dinoiser"}
        other.write_bytes(b"another")
        assert weight_files(Config(dict(model=model))) != before

    def test_a_whole_evaluation_by_the_command_line(self, file, tool, tmp_path):
        options = [
            "model.method=CLIP-DINOiser", "model.dinoiser=convolutions",
            f"model.dinoiser_weights={file}", "model.prompts=['a {}.']",
            "test_dataloader.dataset.split=tune", "test_dataloader.dataset.scenes=1",
            "short_side=64", "model.window=64", "model.stride=32",
            f"test_dataloader.dataset.data_root={tmp_path / 'data'}",
        ]  # fmt: skip
        config = ROOT / "configs/cfg_toyland.py"
        code, _, error = tool("test", config, "--work-dir", tmp_path, "--cfg-options", *options)
        assert code == 0, error
        result = json.loads((tmp_path / "results.json").read_text())
        assert len(result["backbones"]["dinoiser"]) == 64 and 0 <= result["mIoU"] < 100
        assert set(result["weight_files"]) == {"clip", "dinoiser"}

    def test_none(self, clip):
        method = build_method("CLIP-DINOiser", clip)
        with pytest.raises(
            SFPError, match=r"bring checkpoints/last\.pt of wysoczanska/clip_dinoiser"
        ):
            method(golden.picture("rect.0", 64, 64)[None])

    @pytest.mark.parametrize(
        ("what", "words"),
        [
            ("absent", "There is no file {file} (dinoiser_weights); bring checkpoints/last.pt of"),
            ("cut", "{file} (dinoiser_weights) can't be read as weights"),
            ("code", "{file} (dinoiser_weights) can't be read as weights (UnpicklingError)"),
            ("list", "{file} (dinoiser_weights) can't be read as weights (AttributeError)"),
            ("one", "{file} (dinoiser_weights) has no bkg_decoder.weight and bkg_decoder.bias"),
            ("width", "is (32, 64, 3, 3), but with ViT-vit12 it must be (m, 128, 3, 3); give"),
            ("bias", "obj_proj.weight of {file} (dinoiser_weights) is (32, 128, 3, 3), but"),
            ("two", "bkg_decoder.weight of {file} (dinoiser_weights) is (2, 128, 1, 1), but"),
            ("nan", "obj_proj of {file} (dinoiser_weights) has NaN or infinite numbers"),
        ],
    )
    def test_a_wrong_one(self, what, words, clip, tmp_path):
        path, weights = tmp_path / "last.pt", convolutions(64 if what == "width" else 128)
        if what == "one":
            weights = {name: value for name, value in weights.items() if "obj" in name}
        elif what == "bias":
            weights["obj_proj.bias"] = weights["obj_proj.bias"][:3]
        elif what == "two":
            for part in ("weight", "bias"):
                weights[f"bkg_decoder.{part}"] = torch.cat([weights[f"bkg_decoder.{part}"]] * 2)
        elif what == "nan":
            weights["obj_proj.weight"][3, 2, 1, 1] = float("nan")
        if what != "absent":
            contents = dict(code=dict(model_state_dict=pytest.fail), list=[weights]).get(what)
            torch.save(contents or {"model_state_dict": weights}, path)
        if what == "cut":
            path.write_bytes(path.read_bytes()[:5000])
        with pytest.raises(SFPError) as caught:
            build_method("CLIP-DINOiser", clip, dinoiser_weights=str(path))
        words = words.replace("ViT-vit12", clip.name)
        assert words.format(file=path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(dinoiser="colour", background=True), "needs the second convolution, which dinoiser="),
        (dict(dinoiser="resnet18"), "timm's resnet18 takes no windows of other sizes"),
        (dict(gamma=1.5), "gamma of method CLIP-DINOiser is 1.5; give a number from 0 to 1"),
        (dict(delta=-0.1), "delta of method CLIP-DINOiser is -0.1"),
        (dict(scale=0.0), "scale of method CLIP-DINOiser is 0.0"),
        (dict(dinoiser=None), "dinoiser of method CLIP-DINOiser is None"),
    ],
)
def test_mistakes(options, words, clip):
    with pytest.raises(SFPError) as caught:
        build_method("CLIP-DINOiser", clip, **options)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_background_without_a_word(clip, file):
    method = build_method("CLIP-DINOiser", clip, dinoiser_weights=str(file), background=True)
    text = replace(golden.text(3), class_of_query=(1, 2, 3), words=BACKGROUND)
    with pytest.raises(SFPError, match="class 0 has no word"):
        method.scores(golden.picture("rect.0", 64, 64)[None], text)
