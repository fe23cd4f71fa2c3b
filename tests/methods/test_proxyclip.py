"""ProxyCLIP and its proxies; timm's models are made here, with weights of their own."""

from __future__ import annotations

import numpy as np
import parity
import pytest
import timm
import torch
import torch.nn.functional as F
from conftest import parity_clip
from safetensors.torch import save_file

from sfp.backbones import load_backbone
from sfp.backbones.timm_vit import TimmViT
from sfp.clip.clip import l2_normalise
from sfp.errors import SFPError
from sfp.methods import build_method

TINY = "vit_tiny_patch16_224"


def proxy_of(case: str):
    """The golden's proxy map, whatever the windows."""
    settings = parity.INDEX["proxies"][case]
    maps = parity.score_maps(settings["proxy"], settings["channels"], *settings["hw"])
    return lambda windows: maps.expand(len(windows), -1, -1, -1)


@pytest.mark.parametrize("case", sorted(parity.INDEX["proxies"]))
@torch.inference_mode()
def test_equals_official_code(case):
    arrays, window = parity.golden("proxyclip"), parity.case_image(case)
    method = build_method("ProxyCLIP", parity_clip(case.split("/")[0]), proxy=proxy_of(case))
    features, tok = method(window)[0], arrays[f"{case}/tok"]
    logits = l2_normalise(features) @ parity.text_features().T
    np.testing.assert_allclose(logits.permute(2, 0, 1), arrays[f"{case}/logits"], atol=1e-5, rtol=0)
    np.testing.assert_allclose(
        features.flatten(0, 1)[tok], arrays[f"{case}/feat"], atol=5e-5, rtol=0
    )
    np.testing.assert_allclose(
        method.tokens(window)[0, tok], arrays[f"{case}/pre"], atol=2e-4, rtol=0
    )


def test_a_batch_takes_the_mean_per_window(clip):
    cases = ["vit12/win0_p8", "vit12/win1_p8", "vit12/win2_p8"]
    maps = torch.cat([proxy_of(case)(torch.zeros(1)) for case in cases])
    method = build_method("ProxyCLIP", clip, proxy=lambda windows: maps)
    logits = (
        l2_normalise(method(torch.cat([parity.case_image(case) for case in cases])))
        @ parity.text_features().T
    )
    for row, case in zip(logits, cases, strict=True):
        np.testing.assert_allclose(
            row.permute(2, 0, 1), parity.golden("proxyclip")[f"{case}/logits"], atol=1e-5, rtol=0
        )


def test_height_and_width_are_not_swapped(clip):
    """A transposed problem gives transposed features (the authors' code swaps the two when it folds
    the values).
    """
    window = parity.image("rect.0", 224, 320)[None]
    method = build_method("ProxyCLIP", clip, proxy=lambda windows: F.avg_pool2d(windows, 8))
    assert method(window).shape == (1, 28, 40, 64)
    # a proxy that only knows rows: every feature must be constant along its row of similar patches
    rows = torch.eye(14)[:, :, None].expand(14, 14, 20)[None]
    along = build_method("ProxyCLIP", clip, proxy=lambda windows: rows)(window)
    torch.testing.assert_close(along, along[:, :, :1].expand_as(along), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(along[:, 0], along[:, 7], atol=1e-2)


def test_rows_without_any_similar_patch_keep_themselves(clip):
    """beta mean(S) > 1 masks every entry, which is NaN in the authors' code."""
    method = build_method(
        "ProxyCLIP", clip, proxy=lambda windows: torch.ones(len(windows), 3, 14, 14)
    )
    assert torch.isfinite(method(parity.case_image("vit12/win0"))).all()


class TestTimm:
    @pytest.fixture(scope="class")
    def weights(self, tmp_path_factory):
        torch.manual_seed(1)
        path = tmp_path_factory.mktemp("timm") / "tiny.safetensors"
        save_file(timm.create_model(TINY, num_classes=0).state_dict(), path)
        return path

    def test_a_local_file_and_its_own_normalisation(self, weights):
        clip = parity_clip("vit12")
        proxy = load_backbone(TINY, clip, "proxy", str(weights))
        model = timm.create_model(
            TINY, num_classes=0, pretrained_cfg_overlay=dict(file=str(weights)), pretrained=True
        ).eval()
        pixels = torch.rand(2, 3, 224, 224)
        with torch.inference_mode():
            expected = model.forward_features((pixels - 0.5) / 0.5)[
                :, 1:
            ]  # this model's mean and deviation
            found = proxy(clip.normalise(pixels * 255))
        assert found.shape == (2, 192, 14, 14)
        torch.testing.assert_close(found.flatten(2).transpose(1, 2), expected, atol=1e-3, rtol=1e-3)

    def test_other_windows(self, weights, clip):
        method = build_method("ProxyCLIP", clip, proxy=TINY, proxy_weights=str(weights))
        assert method(parity.image("rect.0", 224, 320)[None]).shape == (1, 14, 20, 64)

    def test_registers_are_dropped(self, tmp_path):
        name = "vit_small_patch14_reg4_dinov2"
        model = timm.create_model(
            name, num_classes=0, img_size=56, embed_dim=48, depth=2, num_heads=2
        )
        assert model.num_prefix_tokens == 5
        model = timm.create_model(
            name,
            num_classes=0,
            img_size=56,
            embed_dim=48,
            depth=2,
            num_heads=2,
            dynamic_img_size=True,
        )
        assert TimmViT(model.eval(), parity_clip("vit12"))(torch.randn(1, 3, 56, 84)).shape == (
            1,
            48,
            4,
            6,
        )

    @pytest.mark.parametrize(
        ("name", "weights", "words"),
        [
            ("vit_base_patch8_224.dyno", None, "no weights"),
            ("vit_bass_patch8_224.dino", None, "vit_base_patch8_224.dino"),
            ("resnet18", None, "plain ViT"),
            (TINY, "absent.safetensors", "absent.safetensors"),
            (
                "vit_base_patch8_224.dino",
                None,
                "proxy_weights",
            ),  # not on this machine, and HF_HUB_OFFLINE is set
        ],
    )
    def test_mistakes(self, name, weights, words, clip):
        with pytest.raises(SFPError, match=words):
            build_method("ProxyCLIP", clip, proxy=name, proxy_weights=weights)

    @pytest.mark.parametrize(
        ("name", "given", "resolved"),
        [
            (TINY, "auto", "scale"),
            (TINY, "timm", "timm"),
            ("vit_small_patch14_dinov2", "auto", "scale"),
            ("vit_small_patch14_reg4_dinov2", "auto", "timm"),
            ("vit_small_patch16_dinov3", "auto", "timm"),  # rotary positions
            ("eva02_tiny_patch14_224", "auto", "timm"),  # both kinds
        ],
    )
    def test_positions_by_the_rule_that_the_model_allows(self, name, given, resolved, clip):
        with torch.device("meta"):
            model = timm.create_model(name, num_classes=0, dynamic_img_size=True)
        found = TimmViT(model, clip, positions=given)
        assert found.positions == resolved and found.patch in (14, 16)

    def test_positions_of_other_grids(self, weights, clip):
        """DINO's scale factors by default; a native grid is left as it is."""
        window = parity.image("rect.0", 224, 320)[None]
        maps = {
            rule: build_method(
                "ProxyCLIP", clip, proxy=TINY, proxy_weights=str(weights), proxy_positions=rule
            ).backbones["proxy"]
            for rule in ("auto", "scale", "timm")
        }
        assert torch.equal(maps["auto"](window), maps["scale"](window))
        assert not torch.allclose(maps["auto"](window), maps["timm"](window), atol=1e-3)
        native = window[..., :224]
        torch.testing.assert_close(maps["auto"](native), maps["timm"](native), atol=1e-4, rtol=1e-4)


def test_colour_needs_no_weights(clip):
    window = torch.zeros(1, 3, 224, 224)
    window[:, 0, :, 112:] = 2.0
    assert load_backbone("colour", clip, "proxy")(window).shape == (1, 4, 28, 28)
    features = build_method("ProxyCLIP", clip, proxy="colour")(window)
    assert features.shape == (1, 28, 28, 64)
    torch.testing.assert_close(
        features[:, :, :14], features[:, :1, :1].expand(1, 28, 14, 64), atol=1e-3, rtol=1e-3
    )


def test_padding_is_added_all_around_and_cut_off(clip):
    given = []

    def proxy(windows):
        given.append(windows)
        return F.avg_pool2d(windows, 8)

    method, text = build_method("ProxyCLIP", clip, proxy=proxy), parity.text_features()
    window = parity.image("rect.0", 230, 300)[None] + 1.0
    scores = method.scores(window, text)
    assert scores.shape == (1, 230, 300, 7)
    (padded,) = given
    assert padded.shape == (1, 3, 280, 336)
    assert torch.equal(padded[:, :, 25:255, 18:318], window) and padded[:, :, :25].abs().max() == 0
    inside = method.scores(padded, text).permute(0, 3, 1, 2)
    inside = F.interpolate(inside, size=(280, 336), mode="bilinear")[:, :, 25:255, 18:318]
    torch.testing.assert_close(scores.permute(0, 3, 1, 2), inside)
    assert method.scores(parity.case_image("vit12/win0"), text).shape == (1, 28, 28, 7)


@pytest.mark.parametrize(
    "proxy", [lambda windows: windows[:, 0], lambda windows: None, lambda windows: windows[:0]]
)
def test_a_proxy_that_returns_something_else(proxy, clip):
    with pytest.raises(SFPError, match=r"must return a map \(B, C, h', w'\)"):
        build_method("ProxyCLIP", clip, proxy=proxy)(parity.case_image("vit12/win0"))


def test_a_proxy_is_part_of_the_provenance_and_moves_with_the_segmentor(tmp_path, clip):
    """Other weights of one name have another fingerprint; in the segmentor they are a submodule."""
    prints = set()
    for seed in (1, 2):
        torch.manual_seed(seed)
        path = tmp_path / f"{seed}.safetensors"
        save_file(timm.create_model(TINY, num_classes=0).state_dict(), path)
        method = build_method("ProxyCLIP", clip, proxy=TINY, proxy_weights=str(path))
        prints.add(method.backbones["proxy"].fingerprint)
    assert len(prints) == 2 and all(len(own) == 64 for own in prints)
    pytest.importorskip("mmseg")
    from sfp.segmentor import SFPSegmentor

    segmentor = SFPSegmentor(
        "Toyland", "toyland", "ProxyCLIP", proxy=TINY, proxy_weights=str(path), names=["a"],
        device="cpu",
    )  # fmt: skip
    segmentor.to(torch.float64)  # stands for a device: what moves, moves whole
    assert {p.dtype for p in segmentor.pipeline.method.backbones["proxy"].parameters()} == {
        torch.float64
    }
