"""Attention against explicit sums over tokens, and what it must ignore."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from bids_petsynth.models.networks.attention import AttentionGate, CrossAttention, LinearAttention, SelfAttention
from bids_petsynth.models.networks.fusion import SourceFusion

SHAPES = [(3, 2), (2, 3, 2)]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def trained(module: nn.Module) -> nn.Module:
    """With every parameter drawn: as after training, when no layer is at zero."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module.double().eval()


def softmax(x: np.ndarray, axis: int) -> np.ndarray:
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def layer_norm(x: np.ndarray, norm: nn.LayerNorm) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    unit = centred / np.sqrt(x.var(-1, keepdims=True) + norm.eps)
    return unit * array(norm.weight) + array(norm.bias)


def array(x: torch.Tensor) -> np.ndarray:
    return x.detach().numpy()


def voxels(x: torch.Tensor) -> np.ndarray:
    """``(N, voxels, C)``."""
    return np.moveaxis(array(x).reshape(*x.shape[:2], -1), 1, 2)


def by_heads(weights_of, q: np.ndarray, k: np.ndarray, v: np.ndarray, heads: int) -> np.ndarray:
    """Head by head, row by row, with the matrix of weights formed; each row of it must sum to 1."""
    out, d = np.empty_like(q), q.shape[-1] // heads
    for n in range(len(q)):
        for head in range(heads):
            part = slice(head * d, (head + 1) * d)
            weights = weights_of(q[n, :, part], k[n, :, part], n)
            np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-12)
            out[n, :, part] = weights @ v[n, :, part]
    return out


def explicit(module: nn.Module, x: torch.Tensor, weights_of) -> np.ndarray:
    tokens = layer_norm(voxels(x), module.norm)
    q, k, v = np.split(tokens @ array(module.qkv.weight).T, 3, axis=2)
    mixed = by_heads(weights_of, q, k, v, module.heads)
    return voxels(x) + mixed @ array(module.out.weight).T + array(module.out.bias)


def full(q: np.ndarray, k: np.ndarray, n: int = 0) -> np.ndarray:
    return softmax(q @ k.T / math.sqrt(q.shape[1]), 1)


def efficient(q: np.ndarray, k: np.ndarray, n: int = 0) -> np.ndarray:
    """Shen et al., arXiv:1812.01243, eq. 5, with the product of softmaxes taken first."""
    return softmax(q, 1) @ softmax(k, 0).T


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("kind", "weights_of"), [(SelfAttention, full), (LinearAttention, efficient)])
def test_self_attention_is_its_quadratic_formula(shape, kind, weights_of):
    module, x = trained(kind(8, 2)), torch.randn(2, 8, *shape, dtype=torch.float64)
    np.testing.assert_allclose(voxels(module(x)), explicit(module, x, weights_of), rtol=1e-10)


@pytest.mark.parametrize("shape", SHAPES)
def test_self_attention_is_pytorchs_multihead_attention(shape):
    module, x = trained(SelfAttention(8, 4)), torch.randn(2, 8, *shape, dtype=torch.float64)
    other = nn.MultiheadAttention(8, 4, batch_first=True, dtype=torch.float64)
    other.load_state_dict(
        {
            "in_proj_weight": module.qkv.weight,
            "in_proj_bias": torch.zeros(24),
            "out_proj.weight": module.out.weight,
            "out_proj.bias": module.out.bias,
        }
    )
    tokens = module.norm(x.flatten(2).transpose(1, 2))
    expected = x.flatten(2) + other(tokens, tokens, tokens)[0].transpose(1, 2)
    torch.testing.assert_close(module(x).flatten(2), expected)


@pytest.mark.parametrize("kind", [SelfAttention, LinearAttention])
def test_self_attention_moves_with_its_voxels(kind):
    module, x = trained(kind(8, 2)), torch.randn(1, 8, 4, 3, 5, dtype=torch.float64)
    rolled = torch.roll(x, (1, 2), (2, 4))
    torch.testing.assert_close(module(rolled), torch.roll(module(x), (1, 2), (2, 4)))


@pytest.mark.parametrize("shape", SHAPES)
def test_cross_attention_is_its_sum_over_present_tokens_and_null(shape):
    module, x = trained(CrossAttention(8, 6, 2)), torch.randn(3, 8, *shape, dtype=torch.float64)
    text = torch.randn(3, 4, 6, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 0, 1], [0, 0, 1, 0], [0, 0, 0, 0]])
    actual = voxels(module(x, text, mask))
    q = layer_norm(voxels(x), module.norm) @ array(module.query.weight).T
    for n in range(3):
        present = layer_norm(array(text[n][mask[n] > 0]), module.context_norm)
        keys, values = np.split(np.vstack([array(module.null), present]) @ array(module.key_value.weight).T, 2, axis=1)
        mixed = by_heads(full, q[n : n + 1], keys[None], values[None], module.heads)
        expected = voxels(x)[n] + (mixed @ array(module.out.weight).T + array(module.out.bias))[0]
        np.testing.assert_allclose(actual[n], expected, rtol=1e-10)
    # with all masked no voxel's own content decides what is added: there is only the null token
    added = actual[2] - voxels(x)[2]
    np.testing.assert_allclose(added, np.broadcast_to(added[0], added.shape), rtol=1e-10)


def test_masked_tokens_are_ignored_to_the_bit_in_result_and_gradient():
    module, x = trained(CrossAttention(8, 6, 2)), torch.randn(2, 8, 2, 2, 2, dtype=torch.float64)
    text = torch.randn(2, 3, 6, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 0], [0, 0, 0]])
    spoiled = text.masked_fill(mask[..., None] == 0, math.nan).requires_grad_()
    result = module(x, spoiled, mask)
    assert torch.equal(result, module(x, text, mask))
    result.square().sum().backward()
    assert spoiled.grad.isfinite().all() and not spoiled.grad[mask == 0].any() and spoiled.grad[0, :2].all()
    assert torch.equal(module(x, text, mask * 0), module(x, text * 2, mask * 0))
    torch.testing.assert_close(module(x), module(x, text, mask * 0))


def test_one_text_serves_all_draws():
    module, x = trained(CrossAttention(8, 6, 2)), torch.randn(3, 8, 2, 2, dtype=torch.float64)
    text, mask = torch.randn(1, 3, 6, dtype=torch.float64), torch.tensor([[1, 0, 1]])
    expected = module(x, text.expand(3, -1, -1).contiguous(), mask.expand(3, -1))
    torch.testing.assert_close(module(x, text, mask), expected)
    torch.testing.assert_close(module(x, text[:, [0, 2]]), expected)


@pytest.mark.parametrize(
    "module", [SelfAttention(8, 2), LinearAttention(8, 2), CrossAttention(8, 6, 2)], ids=lambda m: type(m).__name__
)
def test_attention_starts_as_the_identity_and_learns(module):
    x = torch.randn(2, 8, 3, 2, 2)
    given = (torch.randn(2, 3, 6),) if isinstance(module, CrossAttention) else ()
    assert torch.equal(module(x, *given), x)
    module(x, *given).pow(3).sum().backward()
    assert module.out.weight.grad.abs().sum() > 0


def test_heads_must_divide_channels():
    with pytest.raises(ValueError, match="10 channels cannot be shared by 4 heads"):
        SelfAttention(10, 4)
    with pytest.raises(ValueError, match="a width of 6 cannot be shared by 4 heads"):
        SourceFusion(2, 3, 6, 5)


@pytest.mark.parametrize("shape", SHAPES)
def test_gate_is_its_formula(shape):
    gate = trained(AttentionGate(6, len(shape)))
    skip, signal = torch.randn(2, 2, 6, *shape, dtype=torch.float64)
    weights = [array(layer.weight).reshape(len(layer.weight), -1) for layer in (gate.skip, gate.signal, gate.logit)]
    hidden = voxels(skip) @ weights[0].T + voxels(signal) @ weights[1].T + array(gate.signal.bias)
    alpha = 1 / (1 + np.exp(-(np.maximum(hidden, 0) @ weights[2].T + array(gate.logit.bias))))
    np.testing.assert_allclose(voxels(gate(skip, signal)), voxels(skip) * alpha, rtol=1e-10)


def test_gate_starts_open_alike_everywhere():
    skip, signal = torch.randn(2, 1, 4, 3, 3, 3)
    torch.testing.assert_close(AttentionGate(4)(skip, signal), skip / (1 + math.exp(-3)))


@pytest.mark.parametrize("shape", SHAPES)
def test_fusion_is_its_sum_over_the_sources_there(shape):
    sources, channels, width, heads = 3, 2, 8, 2
    fusion = trained(SourceFusion(sources, channels, width, 5, dims=len(shape), heads=heads))
    features = torch.randn(4, sources, channels, *shape, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1], [1, 0, 1], [0, 1, 0], [0, 0, 0]])
    embedding = torch.randn(4, 5, dtype=torch.float64)
    fused, weights = fusion.attend(features, mask, embedding)
    key, value = (
        [
            (array(w).reshape(width, channels), array(b))
            for w, b in zip(layer.weight.chunk(sources), layer.bias.chunk(sources), strict=True)
        ]
        for layer in (fusion.key, fusion.value)
    )
    d = width // heads
    for n in range(3):
        there = [s for s in range(sources) if mask[n, s]]
        query = array(fusion.query.weight) @ array(embedding[n]) + array(fusion.query.bias)
        for at in np.ndindex(*shape):
            expected, share = np.empty(width), np.zeros(sources)
            local = {s: array(features[n, s])[(slice(None), *at)] for s in there}
            for head in range(heads):
                part = slice(head * d, (head + 1) * d)
                k, v = ({s: (w[s][0] @ local[s] + w[s][1])[part] for s in there} for w in (key, value))
                attention = softmax(np.array([query[part] @ k[s] / math.sqrt(d) for s in there]), 0)
                expected[part] = sum(a * v[s] for a, s in zip(attention, there, strict=True))
                share[there] += attention / heads
            np.testing.assert_allclose(array(fused[n])[(slice(None), *at)], expected, rtol=1e-10)
            np.testing.assert_allclose(array(weights[n])[(slice(None), *at)], share, rtol=1e-10)
    assert not weights[3].any()
    assert torch.equal(fused[3], fusion.null.view(-1, *[1] * len(shape)).expand_as(fused[3]))


@pytest.mark.parametrize("rubbish", [math.nan, math.inf, 1e300])
def test_fusion_ignores_a_missing_source_to_the_bit(rubbish):
    fusion = trained(SourceFusion(3, 2, 8, 5))
    features, embedding = torch.randn(2, 3, 2, 2, 2, 2).double(), torch.randn(2, 5).double()
    mask = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    missing = (mask == 0)[..., None, None, None, None]
    spoiled = features.masked_fill(missing, rubbish).requires_grad_()
    fused = fusion(spoiled, mask, embedding)
    assert torch.equal(fused, fusion(features, mask, embedding))
    fused.square().sum().backward()
    assert spoiled.grad.isfinite().all() and not spoiled.grad[mask == 0].any()
    assert all(p.grad.isfinite().all() for p in fusion.parameters())
    assert fusion.null.grad.any(), "a person without a source trains the null feature"


def test_embedding_steers_which_source_counts():
    fusion = SourceFusion(2, 1, 4, 1, heads=1)
    with torch.no_grad():
        for parameter in fusion.parameters():
            parameter.zero_()
        fusion.query.weight[0] = 1.0
        fusion.key.bias[0], fusion.key.bias[4] = 20.0, -20.0
        fusion.value.weight.fill_(1.0)
    features = torch.stack([torch.full((1, 2, 2, 2), 3.0), torch.full((1, 2, 2, 2), 7.0)])[None]
    for steer, chosen in ((5.0, 3.0), (-5.0, 7.0), (0.0, 5.0)):
        fused = fusion(features, torch.ones(1, 2), torch.tensor([[steer]]))
        torch.testing.assert_close(fused, torch.full_like(fused, chosen))
