"""SAM 2's automatic masks: a tiny model of the real classes with made-up weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pretended_device import PretendedCUDA

import sfp
from sfp.datasets import toyland
from sfp.errors import SFPError
from sfp.regions import PROGRAMS, load_masks, masks_on_disk
from sfp.stages import Picture

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from transformers import Sam2Config, Sam2Model
    from transformers.models.sam2 import configuration_sam2 as sizes

    torch.manual_seed(0)
    trunk = sizes.Sam2HieraDetConfig(
        hidden_size=16,
        image_size=[64, 64],
        blocks_per_stage=[1, 1, 1, 1],
        embed_dim_per_stage=[16, 32, 64, 128],
        num_attention_heads_per_stage=[1, 1, 2, 4],
        global_attention_blocks=[],
        window_size_per_stage=[4, 2, 2, 2],
        window_positional_embedding_background_size=[4, 4],
    )
    vision = sizes.Sam2VisionConfig(
        backbone_config=trunk,
        backbone_channel_list=[128, 64, 32, 16],
        backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]],
        fpn_hidden_size=32,
    )
    prompts = sizes.Sam2PromptEncoderConfig(hidden_size=32, image_size=64, patch_size=16)
    decoder = sizes.Sam2MaskDecoderConfig(
        hidden_size=32, mlp_dim=32, num_attention_heads=2, iou_head_hidden_dim=16
    )
    model = Sam2Model(
        Sam2Config(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder)
    )
    with torch.no_grad():  # so that masks differ from point to point
        for name, weight in model.named_parameters():
            if "mask_decoder" in name and weight.ndim > 1:
                weight.mul_(3)
    path = tmp_path_factory.mktemp("sam2")
    model.save_pretrained(path)
    return path


def masks_of(folder, clip, image, **options):
    spec = dict(type="sam2", model=str(folder), **{"iou": 0.0, "stability": 0.0, **options})
    return load_masks(spec, clip)(Picture(torch.zeros(3, 9, 9), image))


def test_a_plain_reading_point_by_point(folder, toyland_clip):
    """Every point's mask by a forward pass of its own, none dropped: the same, by area."""
    from transformers import Sam2Model

    image = toyland.make_scene("val", 0).image.copy()
    height, width = image.shape[:2]
    found = masks_of(folder, toyland_clip, image, points=3, overlap=1.0, points_at_once=4)
    model = Sam2Model.from_pretrained(folder).eval()
    planes = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    planes = F.interpolate(planes, size=(64, 64), mode="bilinear", antialias=True)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    planes = (planes / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    expected = []
    for y in range(3):
        for x in range(3):
            point = torch.tensor([[[[64 * (x + 0.5) / 3, 64 * (y + 0.5) / 3]]]])
            with torch.inference_mode():
                out = model(pixel_values=planes, input_points=point, multimask_output=False)
            logits = F.interpolate(out.pred_masks[0], size=(height, width), mode="bilinear")
            expected.append(logits[0, 0].numpy() > 0)
    expected.sort(key=np.sum)
    assert len(found) == 9 and sorted(found.areas) == list(found.areas)
    for own, mask in zip(found.masks(), expected, strict=True):
        assert (own == mask).mean() > 0.98  # their resizing differs by 0.015 of a deviation
    assert len({mask.tobytes() for mask in expected}) > 3
    again = masks_of(folder, toyland_clip, image, points=3, overlap=1.0, points_at_once=64)
    assert again == found


@pytest.mark.filterwarnings("ignore")
def test_masks_on_a_gpu_are_those_of_the_cpu(folder, toyland_clip):
    """Of a pretended one, which refuses float32 convolutions in TF32."""
    image, program = toyland.make_scene("val", 0).image, PROGRAMS.get("sam2")
    options = dict(model=str(folder), points=2, iou=0.0, stability=0.0, overlap=1.0)
    expected = program(toyland_clip, **options)(image)
    with PretendedCUDA():
        clip = sfp.load_clip("Toyland", device="cuda", precision="fp32")
        found = program(clip, **options)(image)
    assert len(found) == 4
    for own, mask in zip(found.masks(), expected.masks(), strict=True):
        assert (own == mask).mean() > 0.999


def test_unsure_unstable_and_double_masks_are_dropped(folder, toyland_clip):
    image = toyland.make_scene("val", 1).image.copy()

    def count(**options) -> int:
        return len(masks_of(folder, toyland_clip, image, points=4, **options))

    every = count(overlap=1.0)
    assert every == 16 and count(overlap=1.0, multimask=True) == 48
    assert 1 <= count(overlap=0.5) < every
    assert count(overlap=1.0, stability=0.9) < every
    assert count(overlap=1.0, iou=1.0) == 0  # an image without any mask is no error


def test_its_weights_are_in_the_fingerprint_and_noticed_on_disk(folder, tmp_path, toyland_clip):
    spec = f"sam2:model={folder},points=2"
    source = load_masks(spec, toyland_clip)
    (key,), (digest,) = zip(*masks_on_disk(spec).items(), strict=True)
    assert key == "masks model" and len(digest) == 64
    other = load_masks(f"sam2:model={folder},points=3", toyland_clip)
    speed = load_masks(f"sam2:model={folder},points=2,points_at_once=3", toyland_clip)
    assert source.fingerprint != other.fingerprint and source.fingerprint == speed.fingerprint


def test_mistakes(folder, tmp_path, toyland_clip, monkeypatch):
    with pytest.raises(SFPError, match=r"has no model\.safetensors"):
        load_masks(f"sam2:model={tmp_path}", toyland_clip)
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes(b"none")
    with pytest.raises(SFPError, match="can't be loaded"):
        load_masks(f"sam2:model={tmp_path}", toyland_clip)
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in weights.items() if "mask_decoder" not in name}
    save_file(kept, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(SFPError, match=r"is no SAM 2: \d+ weights such as mask_decoder"):
        load_masks(f"sam2:model={tmp_path}", toyland_clip)
    import sys

    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(SFPError, match=r"needs transformers .*pip install 'sfp-ovss\[vision\]'"):
        load_masks(f"sam2:model={folder}", toyland_clip)
