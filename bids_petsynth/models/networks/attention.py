"""Attention of an image to a text, to itself, and to its own skip connections.

Images are ``(N, C, …)`` with any number of spatial axes. Each attention is a residual branch whose last layer starts at
zero: a network to which it is added starts as it was.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bids_petsynth.models.networks.layers import CONVOLUTION, zeroed

#: Bias of a gate's logit at the start: it lets 95 % through.
OPEN = 3.0


class _ImageAttention(nn.Module):
    """What the kinds share: voxels as tokens ``(N, voxels, C)``, a norm per voxel, heads, the residual sum."""

    def __init__(self, channels: int, heads: int):
        super().__init__()
        if heads < 1 or channels % heads:
            raise ValueError(f"{channels} channels cannot be shared by {heads} heads; choose a divisor")
        self.heads = heads
        self.norm = nn.LayerNorm(channels)
        self.out = zeroed(nn.Linear(channels, channels))

    def tokens(self, x: Tensor) -> Tensor:
        return self.norm(x.flatten(2).transpose(1, 2))

    def split(self, tokens: Tensor) -> Tensor:
        """``(N, tokens, C)`` → ``(N, heads, tokens, C / heads)``."""
        return tokens.unflatten(2, (self.heads, -1)).transpose(1, 2)

    def added(self, x: Tensor, attended: Tensor) -> Tensor:
        """``x`` plus the attended values ``(N, heads, voxels, C / heads)`` after the last layer."""
        return x + self.out(attended.transpose(1, 2).flatten(2)).transpose(1, 2).view_as(x)


class SelfAttention(_ImageAttention):
    """``softmax(q kᵀ / √d) v`` of all voxels on all (Vaswani et al., arXiv:1706.03762); time grows as voxels²."""

    def __init__(self, channels: int, heads: int):
        super().__init__(channels, heads)
        self.qkv = nn.Linear(channels, 3 * channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``x (N, C, …)`` → the same shape."""
        q, k, v = map(self.split, self.qkv(self.tokens(x)).chunk(3, dim=2))
        return self.added(x, F.scaled_dot_product_attention(q, k, v))


class LinearAttention(_ImageAttention):
    """``ρ(q) (σ(k)ᵀ v)``, softmax ρ over channels and σ over voxels; time grows as voxels.

    The weights ``ρ(q) σ(k)ᵀ`` of a voxel sum to 1, as in full attention, and are never formed.
    Source: Shen et al., arXiv:1812.01243; linear attention after Katharopoulos et al., arXiv:2006.16236.
    """

    def __init__(self, channels: int, heads: int):
        super().__init__(channels, heads)
        self.qkv = nn.Linear(channels, 3 * channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``x (N, C, …)`` → the same shape."""
        q, k, v = map(self.split, self.qkv(self.tokens(x)).chunk(3, dim=2))
        return self.added(x, q.softmax(3) @ (k.softmax(2).transpose(2, 3) @ v))


class CrossAttention(_ImageAttention):
    """Voxels ask, tokens of a text answer: ``softmax(q kᵀ / √d) v`` over its tokens and a learned null token.

    The null token is always among the keys: a voxel may leave the text unread, and a row without a token is defined.
    What a masked token holds never counts, not even NaN.
    """

    def __init__(self, channels: int, context_width: int, heads: int):
        super().__init__(channels, heads)
        self.context_norm = nn.LayerNorm(context_width)
        self.null = nn.Parameter(torch.randn(context_width) * 0.1)
        self.query = nn.Linear(channels, channels, bias=False)
        self.key_value = nn.Linear(context_width, 2 * channels, bias=False)

    def forward(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """``x (N, C, …)`` → the same shape.

        Parameters
        ----------
        context
            Tokens ``(N or 1, T, context_width)``; None for no text at all.
        mask
            ``(N or 1, T)``, true or above 0 where a token is there; all are if None.
        """
        if context is None:
            context = x.new_zeros(1, 0, len(self.null))
        there = torch.ones(context.shape[:2], dtype=torch.bool, device=x.device) if mask is None else mask > 0
        context = torch.where(there[..., None], context, 0)  # not a product: 0 · NaN is NaN
        rows = max(len(context), len(there))
        null = self.null.expand(rows, 1, -1).to(context.dtype)
        context = torch.cat([null, self.context_norm(context).expand(rows, -1, -1)], dim=1)
        k, v = (self.split(part.expand(len(x), -1, -1)) for part in self.key_value(context).chunk(2, dim=2))
        there = F.pad(there.expand(len(x), -1), (1, 0), value=True)[:, None, None]
        q = self.split(self.query(self.tokens(x)))
        return self.added(x, F.scaled_dot_product_attention(q, k, v, attn_mask=there))


class AttentionGate(nn.Module):
    """Additive gate of a skip connection: ``skip · sigmoid(ψ(relu(W_x skip + W_g signal + b)))``, one value per voxel.

    The signal is the decoder's, on the skip's grid. A gate starts nearly open.
    Source: Oktay et al., arXiv:1804.03999, eq. 1.
    """

    def __init__(self, channels: int, dims: int = 3):
        super().__init__()
        conv, hidden = CONVOLUTION[dims], max(1, channels // 2)
        self.skip = conv(channels, hidden, 1, bias=False)
        self.signal = conv(channels, hidden, 1)
        self.logit = zeroed(conv(hidden, 1, 1))
        nn.init.constant_(self.logit.bias, OPEN)

    def forward(self, skip: Tensor, signal: Tensor) -> Tensor:
        """``skip`` and ``signal (N, C, …)`` → the gated skip."""
        return skip * torch.sigmoid(self.logit(F.relu(self.skip(skip) + self.signal(signal))))
