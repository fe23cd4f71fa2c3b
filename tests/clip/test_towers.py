"""Towers of every family against open_clip's own forward, hooks, grids, pools, rotary positions."""

from __future__ import annotations

import copy

import pytest
import tiny_clips
import torch
from pretended_device import PretendedCUDA
from tiny_clips import BLOCKS, CONFIGS, network, tiny_clip, windows

import sfp
from sfp.clip.kernels import layer_norm
from sfp.clip.trunk import Attention, Hook
from sfp.errors import SFPError
from sfp.methods import METHODS
from sfp.outliers import DETECTORS
from sfp.page.backend import TOYLAND_OPTIONS
from sfp.stages import Picture

EVERY = pytest.mark.parametrize("name", CONFIGS)
# no token before the patches and a pool; a class token and rotary positions; registers alone
KINDS = ("siglip", "eva02", "registers")
TEXTS = ["a photo of the cat", "the sea"]


def close(found, expected, atol=1e-5):
    torch.testing.assert_close(found, expected, atol=atol, rtol=1e-5)


@EVERY
@torch.inference_mode()
def test_pooled_embeddings_equal_open_clips_own(name):
    clip, own, images = tiny_clip(name), network(name), windows(2)
    options = dict(normalize=False)
    # post-norm blocks enlarge the rounding of the patch embedding, a linear map here
    atol = 2e-4 if name == "eva02-post-norm" else 1e-5
    close(clip.encode_image(images), own.encode_image(images, **options), atol)
    ids = clip.tokenize(TEXTS)
    full = torch.nn.functional.pad(ids, (0, clip.text.context - ids.shape[1]))
    close(clip.encode_text(ids), own.encode_text(full, **options))


@EVERY
@torch.inference_mode()
def test_attention_maps_rows_and_hooks(name):
    clip, images, states = tiny_clip(name), windows(2, 3, 5), []
    trunk, plain = clip.trunk, tiny_clip(name).trunk.run(images)
    every = range(1, trunk.layers + 1)
    close(trunk.run(images, [Hook(states.append, every, Attention.MAP)]), plain, 1e-4)
    rows = []
    close(trunk.run(images, [Hook(rows.append, every, Attention.ROWS)]), plain, 1e-4)
    before, count = trunk.prefix, 15
    for state, of_rows in zip(states, rows, strict=True):
        assert state.q.shape == (2, trunk.heads, before + count, trunk.blocks[0].head_width)
        assert state.patches.shape == (2, count, trunk.width)
        assert state.attention.shape == (2, before + count, before + count)
        close(state.attention.sum(-1), torch.ones(2, before + count))
        maps = state.patch_attention.diagonal(dim1=1, dim2=2)
        close(of_rows.diagonal.mean(1), maps)
        if trunk.class_token:
            close(of_rows.cls_row.mean(1), state.attention[:, 0, before:])
            close(of_rows.cls_column.mean(1), state.attention[:, before:, 0])
    replaced = trunk.run(images, [Hook(lambda state: state.tokens * 0, [trunk.layers])])
    assert torch.equal(replaced, torch.zeros_like(plain))


@EVERY
@torch.inference_mode()
def test_a_window_alone_and_among_others(name):
    method = sfp.build_method("ClearCLIP", tiny_clip(name))
    images = windows(3, 4, 6)
    close(method(images)[1:2], method(images[1:2]), 1e-4)
    embed = tiny_clip(name).encode_image
    close(embed(images)[1:2], embed(images[1:2]), 1e-4)


@pytest.mark.parametrize("name", [name for name in CONFIGS if "timm_kwargs" in
                                  CONFIGS[name]["vision_cfg"]])  # fmt: skip
@torch.inference_mode()
def test_other_grids_are_those_of_timm(name):
    """timm's own model set to another size: positions antialiased, rotary ones stretched."""
    images, own = windows(2, 3, 6), copy.deepcopy(network(name).visual)
    own.set_input_size(tuple(images.shape[-2:]))
    trunk = tiny_clip(name).trunk
    close(trunk.pooled(trunk.run(images, resize="antialias"), (3, 6)), own(images), 1e-4)


@torch.inference_mode()
def test_a_pool_reads_a_patch_as_a_sequence_of_it_alone():
    tokens = torch.randn(5, tiny_clips.WIDTH)
    for name in ("siglip", "pe"):
        own, trunk = network(name).visual.trunk, tiny_clip(name).trunk
        alone = own.head(own.attn_pool(own.norm(tokens)[:, None]))
        close(trunk.readout(tokens), alone)
    visual = network("coca").visual
    alone = visual.ln_post(visual.attn_pool(tokens[:, None]))[:, 0] @ visual.proj
    close(tiny_clip("coca").trunk.readout(tokens), alone)


@torch.inference_mode()
def test_an_average_is_of_the_patches_alone():
    """Neither class token nor test-time registers count."""
    for name in ("clipa", "average", "average-of-patches", "registers"):
        trunk = tiny_clip(name).trunk
        tokens, rows = trunk.run(windows(1), registers=2), trunk.rows((4, 4))
        other = tokens.clone()
        other[:, : rows.start], other[:, rows.stop :] = 9.0, 9.0
        close(trunk.pooled(other, (4, 4)), trunk.pooled(tokens, (4, 4)))


@EVERY
@torch.inference_mode()
def test_weights_that_are_moved_are_read_where_they_are_now(name):
    """As mmengine's runner moves a segmentor: nothing that a tower made of them stays behind."""
    clip, images = tiny_clips.load(name), windows(1)
    tokens = clip.trunk.run(images)
    expected, single = clip.encode_image(images), clip.trunk.readout(tokens)
    with PretendedCUDA():
        clip.model.to("cuda")
        close(clip.encode_image(images.to("cuda")).cpu(), expected, 1e-4)
        close(clip.trunk.readout(tokens.to("cuda")).cpu(), single, 1e-4)


class TestRotary:
    @torch.inference_mode()
    @pytest.mark.parametrize("name", ["eva02", "pe"])
    def test_patches_alone_are_turned_as_among_all(self, name):
        trunk = tiny_clip(name).trunk
        tokens, block = trunk.run(windows(2, 3, 5), last=2), trunk.blocks[2]
        normed, rows = block.normed(tokens), trunk.rows((3, 5))
        for letters in ("qkv", "qv", "k"):
            for whole, part in zip(
                block.qkv(normed, letters), block.qkv(normed[:, rows], letters), strict=True
            ):
                close(whole[:, :, rows], part)

    @torch.inference_mode()
    def test_the_grid_matters_and_may_be_given(self):
        trunk = tiny_clip("eva02").trunk
        wide, tall = windows(1, 3, 5), windows(1, 5, 3)
        tokens, block = trunk.run(wide, last=2), trunk.blocks[2]
        normed = block.normed(tokens)
        (first,) = block.qkv(normed, "q")
        trunk.run(tall, last=2)
        (after,) = block.qkv(normed, "q")
        assert not torch.allclose(first, after, atol=1e-3)
        (given,) = block.qkv(normed, "q", (3, 5))
        assert torch.equal(first, given)

    def test_too_few_tokens(self):
        trunk = tiny_clip("eva02").trunk
        trunk.run(windows(1))
        tokens = torch.zeros(1, 9, trunk.width)
        with pytest.raises(SFPError, match=r"9 tokens are not those of a grid of \(4, 4\)"):
            trunk.blocks[0].qkv(tokens)


def options_of(method: str) -> dict:
    """What a method needs to be built on a tiny model."""
    return {} if method in ("FLOSS", "CaR") else TOYLAND_OPTIONS.get(method, {})


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("method", METHODS.names())
@torch.inference_mode()
@pytest.mark.filterwarnings("ignore")
def test_every_method_runs_or_says_what_it_needs(name, method):
    clip = tiny_clip(name)
    options = options_of(method)
    if METHODS.get(method).needs_class_token and not clip.trunk.class_token:
        with pytest.raises(SFPError, match=f"{method} reads the class token.*one of .*CLIP, "):
            sfp.build_method(method, clip, **options)
        return
    built, images = sfp.build_method(method, clip, **options), windows(2, 4, 5)
    features = built(images)
    assert features.shape[0] == 2 and features.shape[-1] == clip.embed_dim
    assert torch.isfinite(features).all() and features.std() > 0
    if not options:  # else on the proxy's grid
        assert features.shape[1:3] == (4, 5)
    close(built(images[1:]), features[1:], 1e-3)
    looked = [built.look(Picture(image)) for image in images]
    encoded = built.run(images, built.parts(looked, [[0, 0, *images.shape[-2:]]] * 2))
    assert all(torch.isfinite(value.float()).all() for value in encoded.values())


@pytest.mark.parametrize("name", ["siglip", "registers"])
@pytest.mark.parametrize("pm", DETECTORS.names())
@torch.inference_mode()
def test_every_detector_runs_or_says_what_it_needs(name, pm):
    clip = tiny_clip(name)
    if DETECTORS.get(pm).needs_class_token and not clip.trunk.class_token:
        with pytest.raises(SFPError, match=r"The detector SOM reads the class token.*L2, LOF"):
            sfp.build_method("MaskCLIP", clip, purify=True, pm=pm)
        return
    detector = dict(type=pm, **({"trees": 3} if pm == "IsolationForest" else {}))
    layers = dict(purify=True, purify_layers=[2, 4])
    method = sfp.build_method("MaskCLIP", clip, pm=detector, **layers)
    assert torch.isfinite(method(windows(1))).all()


@torch.inference_mode()
@pytest.mark.filterwarnings("ignore")
def test_options_that_need_no_class_token():
    clip, images = tiny_clip("siglip"), windows(1)
    for method, options in (
        ("SFP", dict(sae_residual="none", pm="LOF")),
        ("SC-CLIP", dict(res_cls=0.0)),
    ):
        assert torch.isfinite(sfp.build_method(method, clip, **options)(images)).all()
    with pytest.raises(SFPError, match="CLIPtrase reads the class token"):
        sfp.build_method("CLIPtrase", clip, cluster_vote="mean")
    with pytest.raises(SFPError, match="AttentionColumn reads the class token"):
        sfp.build_method("CLIP", clip, purify=True, pm=dict(type="AttentionColumn", cls_row=True))


@torch.inference_mode()
def test_purification_and_registers_leave_the_tokens_before_the_patches_alone():
    for name in ("siglip", "registers", "eva02"):
        clip, seen = tiny_clip(name), []
        neurons = dict(count=2, neurons={2: [3, 5]})
        method = sfp.build_method("MaskCLIP", clip, purify=True, pm="L2", topk=2, registers=neurons)
        method.observers.append(Hook(seen.append, range(1, BLOCKS)))
        assert method(windows(2)).shape == (2, 4, 4, clip.embed_dim)
        for state in seen:
            changed = (state.tokens != state.before_repair).any(-1)
            assert not changed[:, : clip.trunk.prefix].any() and not changed[:, -2:].any()
            assert torch.equal(changed[:, state.rows], state.outliers)


def test_an_inspection_without_a_class_token():
    segmenter = sfp.Segmenter("MaskCLIP", tiny_clip("siglip"), text_cache=False)
    picture = (torch.rand(3, 80, 96) * 255).to(torch.uint8)
    inspection = segmenter.inspect(picture, short_side=64)
    plain = inspection.plain
    assert plain.prefix == 0 and set(plain.outliers) == {"L2", "LOF"}
    assert plain.attention_of(1, (0, 0)).sum() == pytest.approx(1, abs=1e-5)
    with pytest.raises(SFPError, match=r"no class token.*received_attention"):
        _ = plain.cls_attention
    with pytest.raises(SFPError, match="The detector SOM reads the class token"):
        segmenter.inspect(picture, detectors=["SOM"])
    from sfp.inspection.figures import attention_figure

    assert attention_figure(inspection, [1, 2]).size[0] > 100


@torch.inference_mode()
def test_lower_precision_is_close(tmp_path):
    for name in ("siglip", "eva02", "vitamin"):
        folder = str(tiny_clips.save(name, tmp_path / name))
        half = sfp.load_clip(pretrained=folder, device="cpu", precision="bf16")
        exact = tiny_clip(name).encode_image(windows(2))
        found = torch.cosine_similarity(half.encode_image(windows(2)), exact)
        assert found.min() > 0.99 and half.fingerprint == tiny_clip(name).fingerprint


def test_rounding_keeps_norms_and_embeddings(tmp_path):
    folder = str(tiny_clips.save("eva02", tmp_path))
    trunk = sfp.load_clip(pretrained=folder, device="cpu", precision="bf16").trunk
    assert trunk.dtype == trunk.blocks[0].fc.weight.dtype == torch.bfloat16
    kept = (trunk.tower.positions, trunk.tower.prefix_tokens, trunk.blocks[0].norm_1.weight)
    assert all(value.dtype == torch.float32 for value in kept)
    tokens = torch.randn(1, 5, trunk.width)
    assert layer_norm(tokens, trunk.blocks[0].norm_1).dtype == torch.float32
