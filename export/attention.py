"""Attention written out: separate q, k and v projections, the scale on q, softmax, and the output projection.

``nn.MultiheadAttention`` traces to a packed projection that is sliced again, and its reshapes bake the example
batch in when that batch is 1. The written-out form has a third fewer nodes, keeps the batch axis symbolic by
construction, and is the pattern that attention fusions of TensorRT and ONNX Runtime look for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from open_clip.modified_resnet import AttentionPool2d
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["ExplicitAttention", "ExplicitAttentionPool", "explicit_attention"]


def _attend(q: Tensor, k: Tensor, v: Tensor, num_heads: int, mask: Tensor | None) -> Tensor:
    """softmax(q kᵀ / sqrt(d_h) + mask) v per head; q (n, l, d), k and v (n, s, d) -> (n, l, d)."""
    head_width = q.shape[-1] // num_heads
    q = (q * head_width**-0.5).unflatten(-1, (num_heads, head_width)).transpose(1, 2)  # (n, heads, l, d_h)
    k = k.unflatten(-1, (num_heads, head_width)).transpose(1, 2)  # (n, heads, s, d_h)
    v = v.unflatten(-1, (num_heads, head_width)).transpose(1, 2)  # (n, heads, s, d_h)
    logits = q @ k.transpose(-1, -2)  # (n, heads, l, s)
    if mask is not None:
        logits = logits + mask
    return (logits.softmax(dim=-1) @ v).transpose(1, 2).flatten(2)


def _packed_parts(attention: nn.MultiheadAttention) -> tuple[Tensor, Tensor, Tensor]:
    if attention.in_proj_weight is not None:
        weight_q, weight_k, weight_v = attention.in_proj_weight.detach().chunk(3)
        return weight_q, weight_k, weight_v
    return (
        attention.q_proj_weight.detach(),
        attention.k_proj_weight.detach(),
        attention.v_proj_weight.detach(),
    )


class ExplicitAttention(nn.Module):
    """Same function and same storage as one ``nn.MultiheadAttention`` in inference."""

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        self.num_heads = attention.num_heads
        self.batch_first = attention.batch_first
        # Views of the packed weight: no copy, and each becomes its own initializer instead of a Slice.
        weights = _packed_parts(attention)
        self.weight_q, self.weight_k, self.weight_v = (nn.Parameter(part, requires_grad=False) for part in weights)
        bias = attention.in_proj_bias
        parts = (None, None, None) if bias is None else bias.detach().chunk(3)
        self.bias_q, self.bias_k, self.bias_v = (
            None if part is None else nn.Parameter(part, requires_grad=False) for part in parts
        )
        self.out_proj = attention.out_proj

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        if not self.batch_first:
            query, key, value = (part.transpose(0, 1) for part in (query, key, value))
        q = functional.linear(query, self.weight_q, self.bias_q)
        k = functional.linear(key, self.weight_k, self.bias_k)
        v = functional.linear(value, self.weight_v, self.bias_v)
        context = self.out_proj(_attend(q, k, v, self.num_heads, self._additive(attn_mask, q.dtype)))
        return (context if self.batch_first else context.transpose(0, 1)), None

    def _additive(self, mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        if mask is None:
            return None
        if mask.dtype == torch.bool:  # True marks what may not be attended to
            mask = torch.zeros_like(mask, dtype=dtype).masked_fill(mask, float("-inf"))
        if mask.dim() == 3:  # (n * heads, l, s): one mask per image and head
            mask = mask.unflatten(0, (-1, self.num_heads))
        return mask


class ExplicitAttentionPool(nn.Module):
    """open_clip's ResNet attention pooling, computed for the one query that is kept: the mean token."""

    def __init__(self, pool: AttentionPool2d) -> None:
        super().__init__()
        self.num_heads = pool.num_heads
        self.positional_embedding = pool.positional_embedding
        self.q_proj, self.k_proj, self.v_proj, self.c_proj = pool.q_proj, pool.k_proj, pool.v_proj, pool.c_proj

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2).transpose(1, 2)  # (n, h*w, d)
        x = torch.cat([x.mean(dim=1, keepdim=True), x], dim=1) + self.positional_embedding  # (n, 1 + h*w, d)
        pooled = _attend(self.q_proj(x[:, :1]), self.k_proj(x), self.v_proj(x), self.num_heads, None)
        return self.c_proj(pooled[:, 0])


def _has_extra_keys(module: nn.Module) -> bool:
    return getattr(module, "bias_k", None) is not None or bool(getattr(module, "add_zero_attn", False))


@contextmanager
def explicit_attention(model: nn.Module) -> Iterator[int]:
    """Write every attention of ``model`` out while the block runs, then put the originals back.

    Subclasses and modules with extra key biases are left alone: they compute something else. Yields the
    number of modules replaced.
    """
    written = {nn.MultiheadAttention: ExplicitAttention, AttentionPool2d: ExplicitAttentionPool}
    originals = [
        (parent, name, child)
        for parent in list(model.modules())
        for name, child in list(parent.named_children())
        if type(child) in written and not _has_extra_keys(child)
    ]
    try:
        for parent, name, child in originals:
            setattr(parent, name, written[type(child)](child).eval())
        yield len(originals)
    finally:
        for parent, name, child in originals:
            setattr(parent, name, child)
