"""A tiny SAM of transformers' real class with made-up weights, in a folder as transformers writes
it.
"""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import SamConfig, SamModel

SIDE, PATCH, WINDOW = 128, 16, 3


def config(last_is_global: bool = True) -> SamConfig:
    """Three blocks, the second and, unless told otherwise, the third with global attention."""
    return SamConfig(
        vision_config=dict(
            hidden_size=32,
            output_channels=16,
            num_hidden_layers=3,
            num_attention_heads=2,
            image_size=SIDE,
            patch_size=PATCH,
            mlp_dim=48,
            window_size=WINDOW,
            global_attn_indexes=[1, 2] if last_is_global else [1],
            num_pos_feats=8,
        ),
        prompt_encoder_config=dict(
            hidden_size=16, image_size=SIDE, patch_size=PATCH, mask_input_channels=8
        ),
        mask_decoder_config=dict(
            hidden_size=16, mlp_dim=24, num_attention_heads=2, iou_head_hidden_dim=16
        ),
    )


def tiny_sam(seed: int = 0, **options: bool) -> SamModel:
    """Weights of some size, so that attention and masks differ from place to place."""
    generator = torch.Generator().manual_seed(seed)
    model = SamModel(config(**options)).eval().requires_grad_(False)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1:
            parameter.copy_(noise * (1.5 / parameter[0].numel() ** 0.5))
        else:
            parameter.add_(0.1 * noise)
    return model


def write_sam(folder: Path, seed: int = 0, **options: bool) -> SamModel:
    model = tiny_sam(seed, **options)
    model.save_pretrained(folder)
    return model
