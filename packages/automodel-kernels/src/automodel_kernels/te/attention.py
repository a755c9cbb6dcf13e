"""Transformer Engine's attention behind transformers' attention interface, packed rows included.

Letters: B batch, T sequence, h heads, g key-value heads, D head size.
"""

import weakref
from typing import Any

from torch import Tensor, nn

from automodel_kernels.te.availability import require_te

NAME = "te"
_layers: "weakref.WeakKeyDictionary[nn.Module, Any]" = weakref.WeakKeyDictionary()


def register_te_attention() -> str:
    """Add ``attn_implementation="te"`` to transformers' attention registry, and return that name.

    Raises: TEUnavailableError: with the reason.
    """
    require_te()
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, te_attention)
    return NAME


def te_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    cu_seq_lens_q: Tensor | None = None,
    cu_seq_lens_k: Tensor | None = None,
    max_length_q: int | None = None,
    max_length_k: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention of query ``[B, h, T, D]`` with key and value ``[B, g, T, D]``; returns ``[B, T, h, D]``.

    Packed rows (``cu_seq_lens_*`` int32 on the device, ``max_length_*`` ints on the host) run in the ``thd`` layout, so
    documents do not see each other; other rows run causally in ``bshd``.

    Raises: ValueError: a dense mask, or packed rows without their lengths.
    """
    if attention_mask is not None:
        raise ValueError(
            f"attention 'te' got a dense mask of shape {tuple(attention_mask.shape)}: it takes packed rows with "
            "cu_seq_lens_q, or rows without padding. Pack the data, or use attn_implementation='sdpa'."
        )
    packed = cu_seq_lens_q is not None
    if packed and (max_length_q is None or max_length_k is None or cu_seq_lens_k is None):
        raise ValueError("packed rows need cu_seq_lens_q, cu_seq_lens_k, max_length_q and max_length_k together.")
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    kwargs: dict[str, Any] = {}
    if packed:
        q, k, v = (x.reshape(-1, *x.shape[2:]) for x in (q, k, v))
        kwargs = {
            "cu_seqlens_q": cu_seq_lens_q,
            "cu_seqlens_kv": cu_seq_lens_k,
            "max_seqlen_q": max_length_q,
            "max_seqlen_kv": max_length_k,
        }
    layer = _layer(module, query, key, scaling, dropout, sliding_window)
    mask = "padding_causal" if packed else "causal"
    layout = "thd" if packed else "bshd"
    out = layer(query_layer=q, key_layer=k, value_layer=v, qkv_format=layout, attn_mask_type=mask, **kwargs)
    B, h, T = query.shape[:3]
    return out.reshape(B, T, h, value.shape[-1]), None


def _layer(
    module: nn.Module, query: Tensor, key: Tensor, scaling: float | None, dropout: float, window: int | None
) -> Any:
    """One attention object a module: it holds no parameters, and stays out of the module tree and of state dicts."""
    if module not in _layers:
        _layers[module] = require_te().DotProductAttention(
            num_attention_heads=query.shape[1],
            kv_channels=query.shape[3],
            num_gqa_groups=key.shape[1],
            attention_dropout=dropout,
            qkv_format="bshd",
            attn_mask_type="causal",
            window_size=None if window is None else (window - 1, 0),
            softmax_scale=scaling,
        )
    return _layers[module]
