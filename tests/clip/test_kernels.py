"""The trunk's arithmetic against torch's plain operators."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sfp.clip import kernels
from sfp.clip.kernels import attend, attend_explicitly, attend_with_rows, layer_norm, linear

ACTIVATIONS = {None: lambda x: x, "silu": F.silu, "gelu": F.gelu}


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bias", [True, False])
def test_linear(activation, dtype, bias):
    torch.manual_seed(0)
    x, weight = torch.randn(2, 9, 48).to(dtype), (torch.randn(80, 48) / 7).to(dtype)
    b = torch.randn(80).to(dtype) if bias else None
    expected = ACTIVATIONS[activation](
        F.linear(x.double(), weight.double(), None if b is None else b.double())
    )
    tolerance = {torch.float32: 2e-5, torch.bfloat16: 4e-2, torch.float16: 5e-3}[dtype]
    with torch.inference_mode():
        found = linear(x, weight, b, activation)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, atol=tolerance, rtol=tolerance)
    with_gradient = linear(x.requires_grad_(), weight, b, activation)
    torch.testing.assert_close(with_gradient.double(), expected, atol=tolerance, rtol=tolerance)
    with_gradient.float().sum().backward()
    assert x.grad is not None


@torch.inference_mode()
def test_linear_of_some_rows_is_close_to_that_of_all():
    """So a window's features are nearly the same in every batch."""
    x, weight, bias = torch.randn(6 * 197, 768), torch.randn(3072, 768) / 28, torch.randn(3072)
    whole = linear(x, weight, bias, "silu")
    for rows in (slice(0, 1), slice(0, 197), slice(197, 5 * 197)):
        torch.testing.assert_close(
            linear(x[rows], weight, bias, "silu"), whole[rows], atol=1e-5, rtol=1e-5
        )


def test_layer_norm_with_a_factor():
    norm = nn.LayerNorm(32)
    nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    x = torch.randn(2, 5, 32)
    torch.testing.assert_close(layer_norm(x, norm, factor=1.702), 1.702 * norm(x))
    assert layer_norm(x, norm, torch.bfloat16).dtype == torch.bfloat16
    torch.testing.assert_close(layer_norm(x.bfloat16(), norm), norm(x.bfloat16().float()))


def heads(tokens: int, width: int = 64, images: int = 5) -> list[torch.Tensor]:
    torch.manual_seed(tokens)
    return list(torch.randn(images, tokens, 3, 4, width).permute(2, 0, 3, 1, 4))


def plainly(q, k, v, bias=None, scale=None):
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    logits = q.double() @ k.double().transpose(-2, -1) * scale
    weights = (logits if bias is None else logits + bias).softmax(-1)
    return weights @ v.double(), weights


def check_rows(rows, weights, atol):
    for found, expected in (
        (rows.cls_row, weights[:, :, 0, 1:]),
        (rows.cls_column, weights[:, :, 1:, 0]),
        (rows.diagonal, weights.diagonal(dim1=2, dim2=3)[..., 1:]),
    ):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), expected, atol=atol, rtol=10 * atol)


@pytest.mark.parametrize(
    "cache",
    [1 << 30, 4 * 4 * 50 * 50 * 2, 4 * 4 * 50 * 7],
    ids=["all at once", "two images", "seven rows"],
)
@pytest.mark.parametrize("bias", [None, "square", "row"])
@torch.inference_mode()
def test_explicit_attention_in_parts(cache, bias, monkeypatch):
    monkeypatch.setattr(kernels, "_CACHE_BYTES", cache)
    q, k, v = heads(50)
    row = F.pad(torch.zeros(1, 49), (1, 0), value=float("-inf"))
    bias = {None: None, "square": torch.randn(50, 50), "row": row}[bias]
    for scale in (None, 0.3):
        expected, weights = plainly(q, k, v, bias, scale)
        mixed, rows, mean = attend_explicitly(q, k, v, bias=bias, scale=scale)
        torch.testing.assert_close(mixed.double(), expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(mean.double(), weights.mean(1), atol=1e-6, rtol=1e-5)
        check_rows(rows, weights, 1e-6)
    assert attend_explicitly(q, k, v, mean=False)[2] is None


@pytest.fixture(params=[False, True], ids=["no tiles", "tiles"])
def tiles(request, monkeypatch):
    """The forms of a processor without and with matrix tiles, whichever this one is."""
    monkeypatch.setattr(kernels, "_HAS_TILES", request.param)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tokens", [1, 2, 50, 197])
@pytest.mark.usefixtures("tiles")
@torch.inference_mode()
def test_rows_from_the_log_sum_exp(tokens, dtype, device):
    q, k, v = (u.to(device, dtype) for u in heads(tokens))
    expected, weights = plainly(q, k, v)
    mixed, rows = attend_with_rows(q, k, v)
    loose = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(mixed.double(), expected, atol=loose, rtol=loose)
    check_rows(rows, weights, 1e-6 if dtype == torch.float32 else 1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.usefixtures("tiles")
@torch.inference_mode()
def test_attend(dtype):
    q, k, v = (u.to(dtype) for u in heads(60))
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    bias = torch.randn(60, 60).to(dtype)
    u = torch.cat([q, k], -1)  # as SFP's SAE: another width than V's
    upper = torch.full((60, 60), float("-inf")).triu(1)
    for found, (expected, _) in (
        (attend(q, k, v, bias=bias), plainly(q, k, v, bias)),
        (attend(u, u, v, scale=0.1), plainly(u, u, v, scale=0.1)),
        (attend(q, k, v, causal=True), plainly(q, k, v, upper)),
    ):
        torch.testing.assert_close(found.double(), expected, atol=tolerance, rtol=tolerance)
