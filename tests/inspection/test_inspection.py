"""``Segmenter.inspect``: each layer's maps, before and after purification, and their figures."""

from __future__ import annotations

import dataclasses
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_clips import network, tiny_clip

import sfp
from sfp.clip import Attention, Hook
from sfp.commands.inspect import main
from sfp.datasets import toyland
from sfp.drawing import MASK, OUTLIER
from sfp.images import resize_short_side
from sfp.inspection.figures import (
    attention_figure,
    feature_figure,
    heads_figure,
    mlp_figure,
    outlier_figure,
    patch_figure,
)

PATCH = (5, 7)


@pytest.fixture(scope="module")
def scene():
    return toyland.make_scene("val", 10)


@pytest.fixture(scope="module")
def segmenter(toyland_clip):
    return sfp.Segmenter("SFP", toyland_clip)


@pytest.fixture(scope="module")
def inspection(segmenter, scene):
    return segmenter.inspect(scene.image)


def windows_of(segmenter, inspection):
    planes = torch.from_numpy(inspection.image.copy()).permute(2, 0, 1)
    return segmenter.pipeline.method.clip.normalise(planes)[None]


def test_shapes(inspection, toyland_clip):
    (h, w), layers, width = inspection.grid, 12, toyland_clip.trunk.width
    assert (
        inspection.layers == layers
        and inspection.image.shape == (16 * h, 16 * w, 3)
        and min(h, w) == 14
    )
    assert (
        inspection.features.shape == (h, w, toyland_clip.embed_dim)
        and inspection.features.dtype == np.float32
    )
    for stream in (inspection.plain, inspection.purified):
        assert (
            stream.tokens.shape == (layers, 1 + h * w, width) and stream.tokens.dtype == np.float32
        )
        assert (
            stream.attention.shape == (layers, 1 + h * w, 1 + h * w)
            and stream.attention.dtype == np.float32
        )
        for maps in (
            stream.cls_attention,
            stream.self_attention,
            stream.received_attention,
            stream.norms,
            stream.repaired,
        ):
            assert maps.shape == (layers, h, w)
        assert list(stream.outliers) == ["SOM", "L2", "LOF"]
        for mask, scores in zip(
            stream.outliers.values(), stream.outlier_scores.values(), strict=True
        ):
            assert (
                mask.shape == scores.shape == (layers, h, w)
                and mask.dtype == bool
                and scores.dtype == np.float32
            )
        assert (
            stream.pca(3).shape == (h, w, 3)
            and 0 <= stream.pca(3).min() <= stream.pca(3).max() <= 1
        )
        assert stream.attention_of(3, PATCH).shape == stream.similarity(3, PATCH).shape == (h, w)
    assert inspection.feature_colours.shape == (h, w, 3)


def test_attention_is_a_distribution(inspection):
    for stream in (inspection.plain, inspection.purified):
        assert np.allclose(stream.attention.sum(-1), 1, atol=1e-5)
        assert (stream.attention >= 0).all()


def test_masks_are_those_of_the_detectors_and_follow_from_the_maps(inspection, segmenter):
    """SOM by its equation from the maps, every detector as run on the layer's state by itself."""
    plain = inspection.plain
    assert np.array_equal(plain.outliers["SOM"], plain.self_attention < plain.cls_attention)
    assert np.allclose(plain.outlier_scores["L2"], plain.norms, rtol=1e-5)
    states = {}
    hook = Hook(lambda state: states.update({state.layer: state}), [1, 6, 12], Attention.MAP)
    with torch.inference_mode():
        segmenter.pipeline.method.trunk.run(windows_of(segmenter, inspection), [hook])
    for layer, state in states.items():
        for name, masks in plain.outliers.items():
            assert np.array_equal(
                sfp.build_detector(name)(state)[0][0].numpy(), masks[layer - 1].ravel()
            )
        assert np.allclose(state.tokens[0].numpy(), plain.tokens[layer - 1], atol=1e-4)


def test_purification_changes_what_follows_it(scene, toyland_clip):
    inspection = sfp.Segmenter("SFP", toyland_clip, purify_layers=[8, 10]).inspect(scene.image)
    plain, purified = inspection.plain, inspection.purified
    assert np.array_equal(plain.tokens[:7], purified.tokens[:7]) and np.array_equal(
        plain.attention[:8], purified.attention[:8]
    )
    assert not plain.repaired.any() and [
        layer for layer in range(1, 13) if purified.repaired[layer - 1].any()
    ] == [8, 10]
    changed = (plain.tokens[7, 1:] != purified.tokens[7, 1:]).any(-1).reshape(inspection.grid)
    assert (
        changed.any() and not (changed & ~purified.repaired[7]).any()
    )  # only repaired tokens differ at once
    assert np.array_equal(
        purified.repaired[7], purified.outliers["SOM"][7]
    )  # detectors look before the repair
    assert np.abs(plain.attention[8] - purified.attention[8]).max() > 1e-4
    assert inspection.protocol["purified_layers"] == [8, 10]


def test_the_features_are_the_methods(inspection, segmenter):
    features = segmenter.pipeline.method(windows_of(segmenter, inspection))[0].numpy()
    assert np.allclose(features, inspection.features, atol=1e-4)


def test_a_method_without_purification_is_compared_with_som(scene, toyland_clip):
    inspection = sfp.Segmenter("CLIP", toyland_clip).inspect(scene.image, detectors=["SOM"])
    assert inspection.protocol["purifier"].startswith("SOM(") and inspection.protocol[
        "purified_layers"
    ] == list(range(1, 12))
    assert inspection.purified.repaired.any()


def test_any_detector_with_any_options(scene, segmenter):
    few = sfp.build_detector("L2", topk=3)
    inspection = segmenter.inspect(scene.image, detectors=["AttentionColumn", few, "DBSCAN"])
    assert list(inspection.plain.outliers) == ["AttentionColumn", "L2", "DBSCAN"]
    assert (inspection.plain.outliers["L2"].sum((1, 2)) == 3).all()


def test_similarity_is_the_cosine(inspection):
    row = PATCH[0] * inspection.grid[1] + PATCH[1]
    tokens = torch.from_numpy(inspection.plain.tokens[6, 1:])
    expected = torch.nn.functional.cosine_similarity(tokens, tokens[row : row + 1])
    found = inspection.plain.similarity(7, PATCH)
    assert np.allclose(found.ravel(), expected.numpy(), atol=1e-5) and abs(found[PATCH] - 1) < 1e-5


@pytest.fixture(scope="module")
def inside(segmenter, scene):
    """Heads of three layers and hidden units of two."""
    return segmenter.inspect(scene.image, heads=[12, 3, 11], mlp=[11, 10])


def test_heads_and_hidden_units_of_the_layers_that_were_asked_for(inside, inspection):
    (h, w), heads, units = inside.grid, 2, 512
    assert not inspection.plain.heads and not inspection.plain.mlp
    for stream in (inside.plain, inside.purified):
        assert list(stream.heads) == [3, 11, 12] and list(stream.mlp) == [10, 11]
        for layer, maps in stream.heads.items():
            assert maps.shape == (heads, 1 + h * w, 1 + h * w) and maps.dtype == np.float32
            assert np.allclose(maps.mean(0), stream.attention[layer - 1], atol=1e-6)
        assert stream.mlp[11].shape == (1 + h * w, units) and stream.mlp[11].dtype == np.float32
        assert stream.attention_by_head(3).shape == (heads, h, w)
        assert np.allclose(stream.attention_by_head(3).mean(0), stream.cls_attention[2], atol=1e-6)
        of_patch = stream.attention_by_head(3, PATCH).mean(0)
        assert np.allclose(of_patch, stream.attention_of(3, PATCH), atol=1e-6)
        found = stream.activations(11, [5, 0])
        assert np.array_equal(found[1].ravel(), stream.mlp[11][1:, 0])
    assert np.allclose(inside.plain.tokens, inspection.plain.tokens, atol=1e-5)


def test_the_strongest_units_are_those_of_the_outliers(inside):
    stream = inside.plain
    assert stream.outliers["SOM"][10].any() and not stream.outliers["SOM"][0].any()
    values = stream.mlp[11][1:][stream.outliers["SOM"][10].ravel()].mean(0)
    found = stream.strongest_units(11, "SOM", 4)
    assert found == np.argsort(-values)[:4].tolist()
    none = {"SOM": np.zeros_like(stream.outliers["SOM"])}
    means = stream.mlp[11][1:].mean(0)
    everywhere = dataclasses.replace(stream, outliers=none).strongest_units(11, "SOM", 4)
    assert everywhere == np.argsort(-means)[:4].tolist() != found


@torch.inference_mode()
@pytest.mark.parametrize("name", ["clip", "quickgelu", "inner-norms", "siglip"])
def test_they_are_what_plain_hooks_on_the_models_own_modules_see(name):
    """open_clip's residual blocks, or timm's, which know nothing of this package's trunk."""
    clip = tiny_clip(name)
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    found = sfp.Segmenter("CLIP", clip).inspect(pixels, short_side=64, heads=[2, 6], mlp=[2, 6])
    visual, seen = network(name).visual, {}
    blocks = visual.trunk.blocks if name == "siglip" else visual.transformer.resblocks

    def keep(key):
        return lambda module, inputs, output: seen.update({key: (module, inputs, output)})

    handles = []
    for layer in (2, 6):
        block = blocks[layer - 1]
        act, normed = (
            (block.mlp.act, block.norm1) if name == "siglip" else (block.mlp.gelu, block.ln_1)
        )
        handles += [act.register_forward_hook(keep(("mlp", layer)))]
        handles += [normed.register_forward_hook(keep(("normed", layer)))]
    planes = torch.from_numpy(found.image.copy()).permute(2, 0, 1)
    visual(clip.normalise(planes)[None])
    for handle in handles:
        handle.remove()
    for layer in (2, 6):
        expected = seen["mlp", layer][2][0].numpy()
        assert np.allclose(found.plain.mlp[layer], expected, atol=1e-4)
        maps = attention_of_module(blocks[layer - 1].attn, seen["normed", layer][2])
        assert np.allclose(found.plain.heads[layer], maps[0].numpy(), atol=1e-5)
        assert np.ptp(found.plain.heads[layer], axis=0).max() > 1e-3  # heads differ


def attention_of_module(attention, tokens: torch.Tensor) -> torch.Tensor:
    """Each head's weights (B, heads, T, T) by the module's own parameters."""
    if isinstance(attention, torch.nn.MultiheadAttention):
        return attention(*[tokens] * 3, need_weights=True, average_attn_weights=False)[1]
    if hasattr(attention, "in_proj_weight"):  # open_clip's own
        joint = torch.nn.functional.linear(tokens, attention.in_proj_weight, attention.in_proj_bias)
        norms = attention.ln_q, attention.ln_k
    else:
        joint, norms = attention.qkv(tokens), (attention.q_norm, attention.k_norm)
    heads = joint.unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
    q, k = (norm(part) for norm, part in zip(norms, heads[:2], strict=True))
    return (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)


def test_figures_of_heads_and_hidden_units(inside):
    assert panel_rows(heads_figure(inside)) == 2
    assert panel_rows(mlp_figure(inside, [10, 11, 10, 11])) == 6
    figures = [
        heads_figure(inside, [11], [2]),
        heads_figure(inside, [11], [1]),
        heads_figure(inside, [11], [1], purified=True),
        heads_figure(inside, [11], [1], PATCH),
        mlp_figure(inside, [11], [5]),
        mlp_figure(inside, [11], [6]),
        mlp_figure(inside, [10], [5]),
    ]
    assert len({figure.tobytes() for figure in figures}) == len(figures)


def test_numbers_are_written(inside, tmp_path):
    with np.load(inside.save(tmp_path / "new/numbers.npz")) as numbers:
        assert np.array_equal(numbers["plain_heads_11"], inside.plain.heads[11])
        assert np.array_equal(numbers["purified_mlp_10"], inside.purified.mlp[10])
        assert np.array_equal(numbers["purified_outliers_L2"], inside.purified.outliers["L2"])
        assert np.array_equal(numbers["plain_attention"], inside.plain.attention)
        assert tuple(numbers["grid"]) == inside.grid
        assert json.loads(str(numbers["protocol"]))["method"] == "SFP"
        each = {"tokens", "attention", "repaired"}
        each |= {
            f"{kind}_{name}" for kind in ("outliers", "scores") for name in ("SOM", "L2", "LOF")
        }
        each |= {"heads_3", "heads_11", "heads_12", "mlp_10", "mlp_11"}
        sides = {f"{side}_{name}" for side in ("plain", "purified") for name in each}
        assert set(numbers) == sides | {"image", "box", "grid", "features", "protocol"}
    with pytest.raises(sfp.SFPError, match=r"ends in '\.json'"):
        inside.save(tmp_path / "numbers.json")


def test_the_command(tmp_path, scene, capsys):
    Image.fromarray(scene.image).save(tmp_path / "scene.png")
    common = [str(tmp_path / "scene.png"), *["--model", "Toyland", "--detectors", "SOM", "--out"]]
    inside = ["--figures", "heads,mlp", "--layers", "11", "--numbers"]
    assert main([*common, str(tmp_path / "out"), *inside]) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "scene_heads.png", "scene_mlp.png", "scene_numbers.npz",
    }  # fmt: skip
    for options, words in (
        ("--figures heads --heads 3", "no head 3; this model's heads go from 1 to 2"),
        ("--heads 1", "--heads is of the figure heads; add --figures heads"),
        ("--figures mlp --units 512", "no unit 512 in layer 1; its units go from 0 to 511"),
        ("--figures heads --layers 13", "layers go from 1 to 12"),
    ):
        assert main([*common, str(tmp_path / "none"), *options.split()]) == 2
        assert words in capsys.readouterr().err


def test_boxes_and_places(scene, segmenter, inspection):
    height, width = scene.labels.shape
    assert (
        inspection.box[:2] == (0, 0)
        and 0.9 * width < inspection.box[2] <= width
        and 0.9 * height < inspection.box[3] <= height
    )
    part = segmenter.inspect(scene.image, box=(100, 50, 340, 290), detectors=["SOM"])
    assert part.grid == (14, 14) and part.box == (100, 50, 340, 290)
    expected = resize_short_side(scene.image[50:290, 100:340], 224).permute(1, 2, 0).numpy()
    assert np.array_equal(part.image, expected)
    assert (
        inspection.patch_at(0, 0) == (0, 0)
        and inspection.patch_at(7 * 16 + 3, 5 * 16 + 15) == PATCH
    )
    assert segmenter.inspect(scene.image, short_side=112).grid[0] == 7


def panel_rows(figure) -> int:
    """How many rows of panels a figure has, at the right of its picture and sides."""
    pixels = np.asarray(figure, int)
    start, end = (int(share * pixels.shape[1]) for share in (0.7, 0.85))
    inked = (pixels[:, start:end].sum(-1) < 755).mean(1) > 0.6
    return int((inked[1:] & ~inked[:-1]).sum())


def near(figure, colour, tolerance: int = 40) -> np.ndarray:
    return (np.abs(np.asarray(figure, int) - colour) <= tolerance).all(-1)


def test_figures_have_their_rows_of_panels(inspection):
    assert panel_rows(attention_figure(inspection)) == 3
    assert panel_rows(outlier_figure(inspection)) == 4  # three detectors and the norms
    assert panel_rows(outlier_figure(inspection, [2, 3], ["L2"])) == 2
    assert panel_rows(patch_figure(inspection, PATCH)) == 4
    assert panel_rows(feature_figure(inspection)) == 2


def test_the_attention_figure_outlines_the_detectors_outliers(inspection):
    """Layer 12 has outliers by L2; SOM's, and those of a stream without any, are others."""
    plain = inspection.plain
    none = dataclasses.replace(
        plain, outliers={name: np.zeros_like(mask) for name, mask in plain.outliers.items()}
    )
    counts = {}
    for title, stream in (("some", plain), ("none", none)):
        shown = attention_figure(dataclasses.replace(inspection, plain=stream), [12], "L2")
        counts[title] = near(shown, OUTLIER).sum()
    assert counts["none"] > 0  # the legend
    assert counts["some"] > 1.5 * counts["none"]


def test_streams_and_detectors_make_other_figures(inspection):
    figures = [
        attention_figure(inspection, [12], "L2"),
        attention_figure(inspection, [12], "L2", purified=True),
        attention_figure(inspection, [12], "LOF"),
        attention_figure(inspection, [11], "L2"),
    ]
    assert len({figure.tobytes() for figure in figures}) == len(figures)


def test_the_outlier_figure_fills_the_patches_of_the_mask(inspection):
    mask = np.zeros_like(inspection.plain.outliers["L2"])
    areas = []
    for flagged in (0, 6, 12):
        mask[1].ravel()[:flagged] = True
        stream = dataclasses.replace(inspection.plain, outliers={"L2": mask})
        shown = outlier_figure(dataclasses.replace(inspection, plain=stream), [2])
        areas.append(near(shown, MASK, 60).sum())
    first, second = areas[1] - areas[0], areas[2] - areas[1]
    assert first > 6 * 50 and second == pytest.approx(first, rel=0.2)


def test_the_patch_figure_frames_the_patch(inspection):
    one, other = (
        np.asarray(patch_figure(inspection, patch, [12]), int) for patch in (PATCH, (9, 3))
    )
    columns = one.shape[1] // 3  # the chosen patch on the picture lies at the left
    changed = np.argwhere((one != other).any(-1)[60:, 40:columns])
    assert len(changed) > 0 and np.ptp(changed[:, 0]) < 200 and np.ptp(changed[:, 1]) < 200


def test_the_feature_figure_has_the_colours(inspection):
    turned = dataclasses.replace(inspection, features=inspection.features[::-1])
    shown, without = (np.asarray(feature_figure(each, [6]), int) for each in (inspection, turned))
    changed = np.argwhere((shown != without).any(-1))
    assert changed[:, 1].min() > shown.shape[1] * 0.6 and changed[:, 0].min() > shown.shape[0] * 0.4
    colours = (255 * inspection.feature_colours.reshape(-1, 3)).round()
    for colour in colours[::40]:
        assert near(shown, colour, 3).sum() > 20


def test_a_notebook_shows_the_attention(inspection):
    shown = Image.open(io.BytesIO(inspection._repr_png_()))
    assert np.array_equal(np.asarray(shown), np.asarray(attention_figure(inspection)))
    assert "12 layers" in repr(inspection)
    assert repr(inspection.plain).endswith("patches, 0 repaired)")
    assert not repr(inspection.purified).endswith(" 0 repaired)")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(box=(0, 0, 9999, 10)), "not inside"),
        (dict(box=(10, 10, 10, 20)), "not inside"),
        (dict(detectors=["SQM"]), "did you mean 'SOM'"),
        (dict(detectors=["SOM", "SOM"]), "twice"),
        (dict(short_side=2000), "lower short_side=2000"),
        (dict(short_side=8), "less than one patch"),
        (dict(heads=[13]), r"heads=\[13\] names layer 13; .* from 1 to 12"),
        (dict(mlp=[0]), "names layer 0"),
        (dict(heads=range(1, 13), short_side=800), "fewer layers of heads and mlp"),
    ],
)
def test_mistakes(options, words, segmenter, scene):
    with pytest.raises(sfp.SFPError, match=words):
        segmenter.inspect(scene.image, **options)


def test_wrong_layers_patches_and_detectors(inspection):
    for call, words in [
        (lambda: inspection.plain.pca(13), "no layer 13"),
        (lambda: inspection.plain.attention_of(0, PATCH), "no layer 0"),
        (lambda: inspection.plain.similarity(1, (99, 0)), "no patch"),
        (lambda: inspection.patch_at(-1, 0), "no pixel"),
        (lambda: attention_figure(inspection, [13]), "no layer 13"),
        (lambda: attention_figure(inspection, detector="SMO"), "did you mean 'SOM'"),
        (lambda: patch_figure(inspection, (0, 99)), "no patch"),
        (lambda: heads_figure(inspection), r"inspect with heads=\[11\]"),
        (lambda: inspection.plain.attention_by_head(7), r"layer 7 were not .* heads=\[7\]"),
        (lambda: inspection.plain.activations(7, [0]), r"inspect with mlp=\[7\]"),
    ]:
        with pytest.raises(sfp.SFPError, match=words):
            call()
