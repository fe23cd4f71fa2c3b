"""SAM against transformers' own forward, and its files; tiny ones with made-up weights."""

from __future__ import annotations

import json
import shutil
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tiny_sam import PATCH, SIDE, write_sam
from torch import Tensor
from transformers import SamModel
from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil

from sfp.backbones import backbone_file, load_sam
from sfp.backbones.sam import Sam, colour_attention
from sfp.errors import SFPError

SIZES = [(96, 128), (130, 67), (128, 128), (20, 300), (5, 128)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sam") / "tiny"
    write_sam(folder)
    return folder


@pytest.fixture(scope="module")
def sam(folder) -> Sam:
    return load_sam(str(folder), "sam")


@pytest.fixture(scope="module")
def theirs(folder) -> SamModel:
    """transformers' own, with attention that it can tell."""
    return SamModel.from_pretrained(folder, attn_implementation="eager").eval()


def pixels(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)


def processed(picture: np.ndarray) -> Tensor:
    """The picture as transformers' processor prepares it."""
    processor = SamImageProcessorPil(
        size=dict(longest_edge=SIDE), pad_size=dict(height=SIDE, width=SIDE)
    )
    return processor(picture, return_tensors="pt")["pixel_values"]


@pytest.mark.parametrize("size", SIZES)
@torch.inference_mode()
def test_the_last_attention_is_the_layers_own(size, sam, theirs):
    """Of the picture's rows and columns, not divided again; values with their bias."""
    seen, caught = sam.see(pixels(*size)), {}
    attn = theirs.vision_encoder.layers[-1].attn
    hook = attn.register_forward_hook(lambda m, i, out: caught.update(out=out[0], weights=out[1]))
    theirs.vision_encoder(processed(pixels(*size)))
    hook.remove()
    found, cells = seen.attention(), SIDE // PATCH
    height, width = found.grid
    assert found.grid == tuple(max(1, round(SIDE * s / max(size)) // PATCH) for s in size)
    maps = torch.stack(list(found.maps))
    expected = caught["weights"].view(-1, cells, cells, cells, cells)
    expected = expected[:, :height, :width, :height, :width].reshape_as(maps)
    torch.testing.assert_close(maps, expected, atol=1e-5, rtol=0)
    if found.grid == (cells, cells):  # P V, projected, is what the layer returns
        mixed = (maps @ found.values).transpose(0, 1).flatten(1)
        own = attn.proj(mixed).view(1, cells, cells, -1)
        torch.testing.assert_close(own, caught["out"], atol=1e-5, rtol=0)
    else:
        assert (maps.sum(-1) < 0.999).any()


@torch.inference_mode()
def test_relative_positions_are_a_plain_readings(sam):
    """Entry by entry: q k / sqrt(d) + q r_(y - y') + q r_(x - x')."""
    seen = sam.see(pixels(96, 128))
    block, cells = sam.model.vision_encoder.layers[-1], SIDE // PATCH
    qkv = block.attn.qkv(block.layer_norm1(seen.stream)).view(cells, cells, 3, 2, -1)
    for head, found in enumerate(seen.attention().maps):
        q, k, _ = (qkv[:, :, part, head] for part in range(3))
        for y, x in ((0, 0), (2, 7), (5, 3)):
            logits = torch.empty(cells, cells)
            for i in range(cells):
                for j in range(cells):
                    down = block.attn.rel_pos_h[y - i + cells - 1]
                    across = block.attn.rel_pos_w[x - j + cells - 1]
                    own = k[i, j] / q.shape[-1] ** 0.5 + down + across
                    logits[i, j] = q[y, x] @ own
            expected = logits.flatten().softmax(0).view(cells, cells)[:6]
            torch.testing.assert_close(found[8 * y + x].view(6, 8), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", SIZES)
@torch.inference_mode()
def test_masks_are_those_of_transformers(size, sam, theirs):
    """Twenty regions in one call there, in two here; their enlargement, too."""
    seen, count = sam.see(pixels(*size)), 20
    torch.testing.assert_close(
        seen.embedding, theirs.get_image_embeddings(processed(pixels(*size))), atol=1e-5, rtol=1e-5
    )
    points, boxes = torch.rand(count, 2) * SIDE, torch.rand(count, 4) * SIDE
    prompt = torch.randn(sam.prompt_side, sam.prompt_side)
    logits, quality = sam.masks(seen, points, boxes, prompt)
    expected = theirs(
        processed(pixels(*size)),
        input_points=points[None, :, None],
        input_boxes=boxes[None],
        input_masks=prompt[None, None],
        multimask_output=False,
    )
    torch.testing.assert_close(logits, expected.pred_masks[0, :, 0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(quality, expected.iou_scores[0, :, 0], atol=1e-5, rtol=1e-4)
    assert logits.std(0).mean() > 0.01  # regions differ
    whole = F.interpolate(logits[:, None], (SIDE, SIDE), mode="bilinear")
    cut = whole[:, :, : seen.size[0], : seen.size[1]]
    enlarged = F.interpolate(cut, size, mode="bilinear")[:, 0]
    torch.testing.assert_close(seen.enlarged(logits, size), enlarged)


def test_colours_attend_to_their_like():
    picture = np.zeros((60, 100, 3), np.uint8)
    picture[:, 50:] = 200
    found = colour_attention(picture)
    (weights,) = found.maps
    assert found.grid == (38, 64) and found.values.shape == (1, 38 * 64, 4)
    row = weights[0].view(38, 64)
    assert row.sum() == pytest.approx(1, abs=1e-4) and row[:, :32].min() > 10 * row[:, 32:].max()


# ---------------------------------------------------------------------- files
def released(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights under the names of the released .pth files."""
    parts = {
        "vision_encoder.layers.": "image_encoder.blocks.",
        "vision_encoder.": "image_encoder.",
        "patch_embed.projection.": "patch_embed.proj.",
        "neck.conv1.": "neck.0.",
        "neck.layer_norm1.": "neck.1.",
        "neck.conv2.": "neck.2.",
        "neck.layer_norm2.": "neck.3.",
        "mask_embed.conv1.": "mask_downscaling.0.",
        "mask_embed.layer_norm1.": "mask_downscaling.1.",
        "mask_embed.conv2.": "mask_downscaling.3.",
        "mask_embed.layer_norm2.": "mask_downscaling.4.",
        "mask_embed.conv3.": "mask_downscaling.6.",
        "point_embed.": "point_embeddings.",
        "shared_embedding.positional_embedding": "pe_layer.positional_encoding_gaussian_matrix",
        "upscale_conv1.": "output_upscaling.0.",
        "upscale_layer_norm.": "output_upscaling.1.",
        "upscale_conv2.": "output_upscaling.3.",
        "layers.0.": "layers.1.",
        "proj_in.": "layers.0.",
        "proj_out.": "layers.2.",
        "layer_norm": "norm",
    }
    found = {}
    for key, value in state.items():
        if key == "shared_image_embedding.positional_embedding":
            continue
        head = ".iou_prediction_head." in key or ".output_hypernetworks_mlps." in key
        for own, name in parts.items():
            if "layers.0" not in own or head:
                key = key.replace(own, name) if head or "proj_" not in own else key
        found[key] = value
    return found


def test_the_released_files_have_the_same_weights_under_other_names(folder, sam, tmp_path):
    state = released(sam.model.state_dict())
    names = set(state)
    assert {
        "image_encoder.blocks.2.norm1.weight",
        "image_encoder.neck.3.bias",
        "prompt_encoder.mask_downscaling.6.weight",
        "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
        "mask_decoder.transformer.layers.1.norm4.weight",
        "mask_decoder.transformer.norm_final_attn.bias",
        "mask_decoder.output_hypernetworks_mlps.3.layers.2.bias",
        "mask_decoder.iou_prediction_head.layers.1.weight",
        "mask_decoder.output_upscaling.3.weight",
    } <= names
    shutil.copy(folder / "config.json", tmp_path)
    torch.save(state, tmp_path / "sam.pth")
    found = load_sam(str(tmp_path / "sam.pth"), "sam")
    assert found.fingerprint == sam.fingerprint


def test_who_loads_the_same_files_gets_the_same(folder, sam):
    name = "facebook/sam-vit-base"
    assert load_sam(str(folder / "model.safetensors"), "sam") is sam
    assert load_sam(name, "sam", str(folder)) is sam
    half = load_sam(str(folder), "sam", dtype=torch.bfloat16)
    assert half is not sam and half.fingerprint == sam.fingerprint
    found = half.see(pixels(96, 128)).attention()
    assert found.values.dtype == next(iter(found.maps)).dtype == torch.float32
    file = folder / "model.safetensors"
    for place in ((str(folder), None), (name, str(folder)), (name, str(file)), (str(file), None)):
        assert backbone_file(*place) == file
    assert backbone_file(name) is None and backbone_file("colour") is None


def test_other_weights_in_the_same_place_are_read(tmp_path):
    write_sam(tmp_path / "one")
    first = load_sam(str(tmp_path / "one"), "sam")
    write_sam(tmp_path / "one", seed=1)
    assert load_sam(str(tmp_path / "one"), "sam").fingerprint != first.fingerprint


def _write(tmp_path, what: str) -> dict[str, str]:
    """Arguments of ``load_sam`` for a mistake."""
    folder = tmp_path / "sam"
    file = folder / "model.safetensors"
    if what == "windows":
        write_sam(folder, last_is_global=False)
    elif what != "empty":
        write_sam(folder)
    else:
        folder.mkdir()
    if what == "kind":
        stated = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**stated, "model_type": "sam2"}))
    elif what == "broken":
        file.write_bytes(b"{")
    elif what == "config":
        (folder / "config.json").write_text("[")
    elif what == "encoder":
        state = load_file(file)
        save_file({k: v for k, v in state.items() if k.startswith("vision_encoder")}, file)
    elif what == "size":
        state = load_file(file)
        state["vision_encoder.pos_embed"] = torch.zeros(1, 4, 4, 32)
        save_file(state, file)
    elif what == "alone":
        return dict(model=str(shutil.move(file, tmp_path / "alone.safetensors")))
    return dict(model=str(folder))


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("empty", "no model.safetensors in .*sam .sam.; give"),
        ("kind", "'sam2'; sam needs a SAM"),
        ("broken", "can't be read as a SAM"),
        ("config", "can't be read as a SAM"),
        ("encoder", "lacks .* such as .*; give"),
        ("size", "lacks 1 of .* such as vision_encoder.pos_embed"),
        ("alone", "no published SAM and no config.json"),
        ("windows", "attends within windows"),
    ],
)
def test_mistaken_files(what, words, tmp_path):
    with pytest.raises(SFPError, match=words):
        load_sam(**_write(tmp_path, what), option="sam")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("sam-vit-base", "sam"), "'sam-vit-base'.*facebook/sam-vit-base"),
        (("facebook/sam-vit-base", "sam"), "not on this machine.*sam_weights"),
        (("facebook/sam-vit-base", "sam", "absent/sam"), "no file absent/sam .sam_weights."),
        (("/absent/sam.pth", "model"), "model is '/absent/sam.pth', which is no file"),
    ],
)
def test_mistaken_names(arguments, words):
    with pytest.raises(SFPError, match=words):
        load_sam(*arguments)


def test_without_transformers(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(SFPError, match=r"needs transformers.*extra vision"):
        load_sam(str(folder), "sam")


def test_a_sam_is_no_map_of_windows(sam):
    with pytest.raises(SFPError, match="whole pictures"):
        sam(torch.zeros(1, 3, 32, 32))


def test_numbers_that_are_not_finite(folder):
    sam = load_sam(str(folder), "sam", dtype=torch.float16)
    seen = sam.see(pixels(96, 128))
    seen.stream = seen.stream * float("inf")
    with pytest.raises(SFPError, match=r"NaN or infinite.*precision"):
        seen.attention()
