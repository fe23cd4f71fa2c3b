"""Test-time registers: the authors' code, what must hold of any edit, the program that finds the
neurons, and every method with them.
"""

from __future__ import annotations

import json

import numpy as np
import parity
import pytest
import timm
import torch
from conftest import parity_clip

import sfp
from sfp.backbones.timm_vit import TimmViT
from sfp.clip.clip import l2_normalise
from sfp.clip.positions import resize_positions
from sfp.clip.registers import SHIPPED, Registers
from sfp.clip.trunk import Attention, Hook
from sfp.datasets import toyland
from sfp.errors import SFPError
from sfp.experiments.register_neurons import Rule, neuron_scores, order_of, unit_scores
from sfp.methods import build_method
from sfp.page.backend import TOYLAND_OPTIONS

INDEX = parity.read_index("index_registers")
FILE = INDEX["files"].get("registers", dict(settings={}, finds={}))
CASES = [case for case in FILE["settings"] if not case.startswith("dino")]
FINDS = [run for run in FILE["finds"] if "dino" not in run]
ATOL = dict(
    logits=1e-5, cc_logits=1e-5, ccdrop_logits=1e-5, attn=1e-5, scores=1e-5, feat=5e-5,
    feat_full=5e-5, cls=5e-5, cc_feat=5e-5, pre=2e-4, stream=4e-4, reg=4e-4, norms=7e-4,
    regval=1e-4, pen=2e-4,
)  # fmt: skip


def options(case: str) -> dict:
    """What the index says of a case, as the option ``registers``."""
    settings = FILE["settings"][case]
    neurons = {int(block) + 1: units for block, units in settings["neurons"].items()}
    value = "per_neuron" if settings.get("ours") else "joint"
    return dict(
        neurons=neurons, count=settings["registers"], value=value,
        patches=settings["normal_values"], scale=settings["scale"],
    )  # fmt: skip


def picture(case: str) -> torch.Tensor:
    settings = FILE["settings"][case]
    with parity.seeded(INDEX["seed"]):
        return parity.image(settings["image"], *settings["size"])[None]


def pair(case: str) -> torch.Tensor:
    """The case's picture, after another of its size."""
    with parity.seeded(INDEX["seed"]):
        other = parity.image("beside", *FILE["settings"][case]["size"])[None]
    return torch.cat([other, picture(case)])


def build(name: str, case: str):
    clip = parity_clip(case.split("/")[0], INDEX["seed"])
    return build_method(name, clip, registers=options(case))


def logits(features: torch.Tensor) -> torch.Tensor:
    with parity.seeded(INDEX["seed"]):
        return (l2_normalise(features) @ parity.text_features().T).permute(2, 0, 1)


def equal(found: torch.Tensor, arrays: dict, case: str, name: str) -> None:
    np.testing.assert_allclose(found, arrays[f"{case}/{name}"], atol=ATOL[name], rtol=0)


@pytest.mark.parametrize("together", [False, True], ids=["alone", "batch"])
@pytest.mark.parametrize("case", CASES)
@torch.inference_mode()
def test_the_edit_equals_official_code(case, together):
    arrays, method = parity.golden("registers"), build("CLIP", case)
    windows, trunk = pair(case) if together else picture(case), method.trunk
    features = method(windows)[-1]
    tok = arrays[f"{case}/tok"]
    equal(logits(features), arrays, case, "logits")
    equal(features.flatten(0, 1)[tok], arrays, case, "feat")
    equal(method.tokens(windows)[-1, tok], arrays, case, "pre")
    if f"{case}/feat_full" in arrays:
        equal(features.flatten(0, 1), arrays, case, "feat_full")

    states, values = [], []
    units = {}
    for block, unit in arrays.get(f"{case}/neurons", np.zeros((0, 2), int)).tolist():
        units.setdefault(block + 1, unit)
    count = method.grid(windows)[0] * method.grid(windows)[1]

    def observe(state):
        factor = trunk.blocks[state.layer - 1].factor
        values.append(state.hidden[-1, 1 + count :, units[state.layer]] / factor)

    last = method.stream(
        windows,
        Hook(observe, list(units), point="neurons"),
        Hook(states.append, [trunk.layers]),
        last=trunk.layers,
    )[-1]
    (state,) = states
    equal(trunk.readout(last[0]), arrays, case, "cls")
    equal(last[1 + count :], arrays, case, "reg")
    equal(last.norm(dim=1), arrays, case, "norms")
    rows = [0, *(1 + tok), *range(1 + count, len(last))]
    equal(state.inputs[-1, rows], arrays, case, "stream")
    weights = (state.q[-1, :, :1] @ state.k[-1].mT * state.q.shape[-1] ** -0.5).softmax(-1)
    equal(weights.mean(0)[0], arrays, case, "attn")
    if values:
        by_layer = dict(zip(sorted(units), values, strict=True))
        equal(torch.stack([by_layer[layer] for layer in units]), arrays, case, "regval")


@pytest.mark.parametrize("together", [False, True], ids=["alone", "batch"])
@pytest.mark.parametrize("case", [case for case in CASES if "_" not in case])
@torch.inference_mode()
def test_clearclip_on_the_edited_stream_equals_its_official_code(case, together):
    """Registers stay keys and values of the last block; and without them, as its goldens have."""
    arrays, method = parity.golden("registers"), build("ClearCLIP", case)
    windows = pair(case) if together else picture(case)
    features = method(windows)[-1]
    equal(logits(features), arrays, case, "cc_logits")
    equal(features.flatten(0, 1)[arrays[f"{case}/tok"]], arrays, case, "cc_feat")
    block, rows = method.last_block, method.patch_rows(windows)
    q, v = block.qkv(block.normed(method.stream(windows)[:, : rows.stop]), "qv")
    mixed = torch.nn.functional.scaled_dot_product_attention(q, q, v)
    dropped = method.trunk.readout(block.project(mixed)[-1, rows]).unflatten(
        0, method.grid(windows)
    )
    equal(logits(dropped), arrays, case, "ccdrop_logits")


@pytest.mark.parametrize("run", FINDS)
def test_finding_equals_official_code(run):
    arrays, settings = parity.golden("registers"), FILE["finds"][run]
    clip = parity_clip(run.split("/")[1], INDEX["seed"])
    rule = Rule(
        settings["threshold"],
        settings["layer"],
        settings["sparsity_filter"],
        settings["level"],
        settings["share"],
    )
    with parity.seeded(INDEX["seed"]):
        images = torch.stack([parity.image(name, *settings["size"]) for name in settings["images"]])
    total, outliers, norms = neuron_scores(clip, images, rule)
    assert int(outliers.any(1).sum()) == settings["images_with_outliers"]
    scores = total / outliers.any(1).sum()
    equal(scores, arrays, run, "scores")
    equal(norms, arrays, run, "norms")
    np.testing.assert_array_equal(outliers.nonzero(), arrays[f"{run}/outliers"])
    order = [(block - 1, unit) for block, unit in order_of(scores)[:32]]
    np.testing.assert_array_equal(order, arrays[f"{run}/order"])
    alone = sum(neuron_scores(clip, image[None], rule)[0] for image in images)
    torch.testing.assert_close(alone, total, atol=1e-5, rtol=1e-5)


class TestDINOv2:
    """A net in DINOv2's layout, made of the toy weights as the index says, run through timm."""

    CASES = [case for case in FILE["settings"] if case.startswith("dino")]

    def build(self, size: list[int]) -> TimmViT:
        with parity.seeded(INDEX["seed"]):
            weights = parity.state_dict("vit12")
            patch_bias = parity._normal("dino.patch_bias", 128, std=0.1)
            scales = [
                [1 + parity._normal(f"dino.ls.{i}.{k}", 128, std=0.1) for k in (1, 2)]
                for i in range(12)
            ]

        def half(values):
            return torch.from_numpy(np.array(values, np.float16).astype(np.float32))

        grid = (size[0] // 16, size[1] // 16)
        positions = resize_positions(weights["visual.positional_embedding"], (14, 14), grid)
        state = {
            "cls_token": weights["visual.class_embedding"].view(1, 1, -1),
            "pos_embed": positions[None],
            "patch_embed.proj.weight": weights["visual.conv1.weight"],
            "patch_embed.proj.bias": half(patch_bias),
            "norm.weight": weights["visual.ln_post.weight"],
            "norm.bias": weights["visual.ln_post.bias"],
        }
        names = {
            "norm1": "ln_1", "norm2": "ln_2", "attn.proj": "attn.out_proj",
            "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
        }  # fmt: skip
        for i in range(12):
            old, new = f"visual.transformer.resblocks.{i}", f"blocks.{i}"
            for kind in ("weight", "bias"):
                state[f"{new}.attn.qkv.{kind}"] = weights[f"{old}.attn.in_proj_{kind}"]
                for name, theirs in names.items():
                    state[f"{new}.{name}.{kind}"] = weights[f"{old}.{theirs}.{kind}"]
            for k in (1, 2):
                state[f"{new}.ls{k}.gamma"] = half(scales[i][k - 1])
        model = timm.create_model(
            "vit_base_patch16_224", img_size=tuple(size), embed_dim=128, depth=12, num_heads=2,
            init_values=1.0, num_classes=0,
        )  # fmt: skip
        model.load_state_dict(state)
        vit = TimmViT(model.eval(), parity_clip("vit12", INDEX["seed"]))
        vit.name = "a DINOv2"
        return vit

    @pytest.mark.parametrize("together", [False, True], ids=["alone", "batch"])
    @pytest.mark.parametrize("case", CASES)
    @torch.inference_mode()
    def test_the_edit_equals_official_code(self, case, together):
        arrays, vit = parity.golden("registers"), self.build(FILE["settings"][case]["size"])
        vit.append_registers(options(case))
        streams = []
        for place in (-2, -1):
            vit.model.blocks[place].register_forward_hook(lambda m, i, out: streams.append(out[-1]))
        windows = pair(case) if together else picture(case)
        tokens, tok = vit.model.forward_features(windows)[-1], 1 + arrays[f"{case}/tok"]
        before, last = streams
        count = FILE["settings"][case]["registers"]
        equal(tokens[tok], arrays, case, "feat")
        equal(tokens[0], arrays, case, "cls")
        equal(before[tok], arrays, case, "pen")
        equal(last[-count:], arrays, case, "reg")
        equal(last.norm(dim=1), arrays, case, "norms")

    def test_the_map_has_patches_alone(self):
        vit = self.build([224, 224])
        plain = vit(parity.case_image("vit12/win0"))
        vit.append_registers(dict(neurons=NEURONS, count=2))
        found = vit(parity.case_image("vit12/win0"))
        assert found.shape == plain.shape == (1, 128, 14, 14)
        assert not torch.allclose(found, plain, atol=1e-3)

    @pytest.mark.parametrize("run", [run for run in FILE["finds"] if "dino" in run])
    @torch.inference_mode()
    def test_finding_equals_official_code(self, run):
        arrays, settings = parity.golden("registers"), FILE["finds"][run]
        vit, hidden, outputs = self.build(settings["size"]), [], []
        for block in vit.model.blocks:
            block.mlp.act.register_forward_hook(lambda m, i, out: hidden.append(out))
            block.register_forward_hook(lambda m, i, out: outputs.append(out))
        with parity.seeded(INDEX["seed"]):
            images = [parity.image(name, *settings["size"]) for name in settings["images"]]
        vit.model.forward_features(torch.stack(images))
        norms = outputs[settings["layer"]].norm(dim=-1)
        equal(norms, arrays, run, "norms")
        outliers = norms > settings["threshold"]
        np.testing.assert_array_equal(outliers.nonzero(), arrays[f"{run}/outliers"])
        rule = Rule(
            settings["threshold"], settings["layer"], settings["sparsity_filter"],
            settings["level"], settings["share"],
        )  # fmt: skip
        scores = torch.stack([unit_scores(own, outliers, rule).sum(0) for own in hidden])
        scores = scores / outliers.any(1).sum()
        equal(scores, arrays, run, "scores")
        order = [(block - 1, unit) for block, unit in order_of(scores)[:32]]
        np.testing.assert_array_equal(order, arrays[f"{run}/order"])

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            (dict(proxy="colour", proxy_registers=1), "neurons of colour are not known"),
            (
                dict(proxy="colour", proxy_registers=dict(neurons={1: [0]})),
                "colour is no timm ViT",
            ),
        ],
    )
    def test_a_proxy_without_them(self, options, words, clip):
        with pytest.raises(SFPError, match=words):
            build_method("ProxyCLIP", clip, **options)


NEURONS = {2: [5, 7], 6: [1, 0, 30]}


@torch.inference_mode()
def hidden_of(trunk, registers, windows, layer: int) -> torch.Tensor:
    """Hidden units of a block, after the edit if it is one of the edited."""
    kept = []
    keep = Hook(lambda state: kept.append(state.hidden.clone()), [layer], point="neurons")
    trunk.run(windows, [registers.hook, keep], registers=registers.count)
    return kept[0]


class TestProperties:
    def test_none_is_the_plain_trunk_to_the_bit(self, clip):
        window = parity.case_image("vit12/win0")
        assert torch.equal(
            build_method("CLIP", clip, registers=0)(window), build_method("CLIP", clip)(window)
        )

    def test_appended_tokens_alone_are_all_equal_and_change_the_others(self, clip):
        window = parity.case_image("vit12/win0")
        tokens = clip.trunk.run(window, registers=3)
        assert tokens.shape == (1, 1 + 196 + 3, 128)
        torch.testing.assert_close(tokens[0, 197:], tokens[0, 197:198].expand(3, -1))
        assert not torch.allclose(tokens[:, :197], clip.trunk.run(window), atol=1e-3)

    def test_what_becomes_of_the_chosen_units(self, clip):
        window = parity.case_image("vit12/win0")
        registers = Registers(NEURONS, count=2, scale=1.5)
        before = hidden_of(clip.trunk, Registers({}, count=2), window, 2)[0, :, NEURONS[2]]
        after = hidden_of(clip.trunk, registers, window, 2)[0, :, NEURONS[2]]
        largest = before.flatten()[before.abs().argmax()]
        assert torch.equal(after[0], before[0]) and not after[1:197].any()
        torch.testing.assert_close(after[197:], torch.full((2, 2), 1.5 * float(largest)))

    def test_the_order_of_neurons_changes_nothing(self, clip):
        window = parity.case_image("vit12/win0")
        one, other = (
            build_method("CLIP", clip, registers=dict(neurons=neurons))(window)
            for neurons in (NEURONS, {6: [30, 0, 1], 2: [7, 5]})
        )
        assert torch.equal(one, other)

    def test_neurons_of_the_last_block_leave_the_class_token_alone(self, clip):
        window, trunk = parity.case_image("vit12/win0"), clip.trunk
        plain = trunk.run(window, registers=1)
        for value, same in (("joint", True), ("per_neuron", False)):
            edited = trunk.run(window, [Registers({12: [0, 3, 9]}, value=value).hook], registers=1)
            assert torch.equal(edited[:, 0], plain[:, 0]) is same
            assert not torch.equal(edited[:, 1:197], plain[:, 1:197])

    def test_the_planted_units_are_found_first(self):
        """Units 0 and 1 of blocks L/3, L/2 and 2L/3 (from 0) of the weights push tokens out."""
        clip = parity_clip("vit12")
        images = torch.stack([parity.image(f"find.{i}", 224, 224) for i in range(6)])
        scores, _, _ = neuron_scores(clip, images, Rule(34.0))
        planted = {(block + 1, unit) for block in (4, 6, 8) for unit in (0, 1)}
        assert planted & set(order_of(scores)[:32])


FEW = dict(neurons={3: [5, 7], 7: [1, 0]}, count=2)


@pytest.mark.parametrize("name", sfp.list_methods())
def test_every_method_works_with_registers(name, clip):
    """Of its grid, other than without, each picture as alone; one window is not square."""
    options = {k: v for k, v in TOYLAND_OPTIONS.get(name, {}).items() if k != "ranking"}
    method = build_method(name, clip, registers=FEW, purify=True, pm="SOM", **options)
    plain = build_method(name, clip, purify=True, pm="SOM", **options)
    windows = torch.stack([parity.image(f"rect.{i}", 112, 144) for i in range(2)])
    features = method(windows)
    assert features.shape == plain(windows).shape and torch.isfinite(features).all()
    assert not torch.allclose(features, plain(windows), atol=1e-3)
    for own, window in zip(features, windows, strict=True):
        assert (own - method(window[None])[0]).norm() < 1e-5 * own.norm()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("CLIPtrase", dict(cluster_vote="mean", class_scores=True)),
        ("CLIPSurgery", dict(feature_surgery=True)),
        ("CLIPSeg", dict(cls_token=True)),
        ("SFP", dict(sae=False, hai_cls=True)),
        ("SFP", dict(sae_cls_key=True, hai_place="after", sae_values="literal")),
        ("SFP-release", dict(release="2025-12")),
        ("SC-CLIP-ablation", dict(fusion="dual_path")),
    ],
)
def test_variants_work_with_registers(name, options, clip):
    method = build_method(name, clip, registers=FEW, **options)
    windows = torch.stack([parity.image(f"rect.{i}", 112, 144) for i in range(2)])
    scores = method.scores(windows, parity.text_features())
    assert scores.shape[0] == 2 and scores.shape[-1] == 7 and torch.isfinite(scores).all()


@pytest.mark.parametrize("pm", sfp.list_detectors())
def test_detectors_see_patches_alone(pm, clip):
    detector, masks, maps = sfp.build_detector(pm), [], []

    def observe(state):
        masks.append(detector(state)[0])
        maps.append(state.attention)

    windows = torch.stack([parity.image(f"rect.{i}", 112, 144) for i in range(2)])
    clip.trunk.run(windows, [Hook(observe, [5], Attention.MAP)], registers=3)
    assert masks[0].shape == (2, 63) and maps[0].shape == (2, 64, 64)
    assert (maps[0].sum(-1) < 1).all()  # what the appended tokens take is not given back


def test_an_inspection_shows_patches_alone(toyland_clip):
    segmenter = sfp.Segmenter("SFP", toyland_clip, registers=FEW)
    found = segmenter.inspect(toyland.make_scene("tune", 0).image, detectors=["SOM"])
    height, width = found.grid
    assert found.purified.tokens.shape[1] == 1 + height * width
    plain = sfp.Segmenter("SFP", toyland_clip).inspect(
        toyland.make_scene("tune", 0).image, detectors=["SOM"]
    )
    np.testing.assert_array_equal(found.plain.tokens, plain.plain.tokens)
    assert not np.allclose(found.purified.tokens, plain.purified.tokens, atol=1e-2)


class TestProgram:
    def test_it_ends_toylands_outliers(self, tool, tmp_path, toyland_clip):
        """Few neurons; 95 percent of the outlier patches are gone; other entries stay."""
        file = tmp_path / "neurons.json"
        file.write_text(json.dumps({"other": {"neurons": {"1": [2]}}}))
        code, out, error = tool(
            "find_registers", "configs/cfg_toyland.py", "--images", 4, "--out", file,
            "--cfg-options", f"test_dataloader.dataset.data_root={tmp_path}",
            "test_dataloader.dataset.split=tune", "test_dataloader.dataset.scenes=4",
        )  # fmt: skip
        assert code == 0, error
        entries = json.loads(file.read_text())
        assert set(entries) == {"other", toyland_clip.fingerprint}
        left = list(entries[toyland_clip.fingerprint]["outlier_patches"].values())
        assert min(left) <= 0.05 * left[0] and "outlier patches, %" in out
        image = toyland.make_scene("tune", 0).image
        options = dict(neurons=str(file), count=1)
        registers = sfp.Segmenter("SFP", toyland_clip, registers=options)
        assert (registers(image, toyland.CLASSES).labels.shape) == image.shape[:2]
        recorded = registers.protocol()["registers"]
        assert recorded["neurons"] and recorded["count"] == 1

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["--images", 0], "at least 1"),
            (["--layer", 13], "12 blocks"),
            (["--threshold", 1e9], "No patch"),
            (["--lowest", 11, "--highest", 10], "No block lies from 11 to 10"),
        ],
    )
    def test_mistakes_are_one_sentence(self, arguments, words, tool, tmp_path):
        code, _, error = tool(
            "find_registers", "configs/cfg_toyland.py", "--out", tmp_path / "n.json", *arguments,
            "--cfg-options", f"test_dataloader.dataset.data_root={tmp_path}",
            "test_dataloader.dataset.scenes=1",
        )  # fmt: skip
        assert code == 2 and words in error, error


def test_the_shipped_file_is_of_the_shipped_weights(toyland_clip):
    """Made again with tools/find_registers.py when the weights change."""
    assert toyland_clip.fingerprint in json.loads(SHIPPED.read_text())
    assert build_method("CLIP", toyland_clip, registers=1).appended.count == 1


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (1, "has no register neurons of these weights"),
        (-1, "registers of method CLIP is -1; give a whole number of at least 0, or a dict"),
        (dict(counts=1), "Unknown argument of registers 'counts'; did you mean 'count'"),
        (dict(neurons={12: [0]}), "give blocks from 1 to 11"),
        (dict(neurons={3: [512]}), "hidden units from 0 to 511"),
        (dict(neurons={3: []}), "neurons of registers has 3"),
        (dict(neurons="absent.json"), "absent.json can't be read"),
        (dict(neurons=NEURONS, value="both"), "value of registers"),
        (dict(neurons=NEURONS, count=2, scale=[1.0]), "1 numbers for 2 tokens"),
        (dict(neurons=NEURONS, value="per_neuron", patches="mean"), "leave one of them out"),
    ],
)
def test_wrong_options_are_one_sentence(option, words, clip):
    with pytest.raises(SFPError) as caught:
        build_method("CLIP", clip, registers=option)
    assert words in str(caught.value) and "\n" not in str(caught.value)
