"""What attention is made of beside its matrices: rotations, masks of documents, its largest logits.

Shapes: B batch, T time, S time including the cache, H heads, K key-value heads, D head width.
"""

import math

import torch
import torch.nn.functional as F


def rotary_table(config):
    """cos and sin of the rotary angles, each (block_size, D): RoFormer, arXiv 2104.09864, eq. 34."""
    D = config.head_width
    frequency = 1.0 / config.rope_theta ** (torch.arange(0, D, 2, dtype=torch.int64).float() / D)  # (D/2,)
    angle = torch.outer(torch.arange(config.block_size).float(), frequency).repeat(1, 2)  # (block_size, D)
    return angle.cos(), angle.sin()


def rotate(x, cos, sin):
    """Rotate x, (B, H, T, D), by its position; component i pairs with i + D/2, as in Hugging Face's LLaMA."""
    left, right = x.chunk(2, dim=-1)  # (B, H, T, D/2) each
    return (x * cos + torch.cat((-right, left), dim=-1) * sin).type_as(x)


def document_starts(tokens, end):
    """Where the document of each position begins, (B, T), in tokens (B, T); a document ends with the id `end`."""
    index = torch.arange(tokens.size(1), device=tokens.device)
    after_end = F.pad(tokens[:, :-1] == end, (1, 0))
    return torch.where(after_end, index, 0).cummax(dim=1).values


@torch.no_grad()
def largest_logits(q, k, mask=None):
    """Largest attention logit of each head, (H,), over batch and causal positions; q (B, H, T, D), k (B, K, T, D).

    mask: (B, 1, T, T), true where a position may look; None: to all that came before.
    """
    T, D = q.shape[-2:]
    q = q.unflatten(1, (k.size(1), -1))  # (B, K, H/K, T, D)
    logits = q @ k.unsqueeze(2).transpose(-2, -1) / math.sqrt(D)  # (B, K, H/K, T, T)
    future = torch.ones(T, T, dtype=torch.bool, device=q.device).triu(1)
    hidden = future if mask is None else ~mask.unsqueeze(1)
    return logits.masked_fill(hidden, -math.inf).amax((0, 3, 4)).flatten()


def for_fused_kernels(q, k, v, mask=None):
    """k and v, (B, K, S, D), with a head for each of q's, (B, H, T, D), on CUDA in float32 or under a mask.

    The one fused kernel that there is for it takes no fewer; without it all T x S logits of a head are in memory.
    """
    if q.device.type == "cuda" and (q.dtype == torch.float32 or mask is not None):
        k, v = (z.repeat_interleave(q.size(1) // z.size(1), dim=1) for z in (k, v))
    return k, v
