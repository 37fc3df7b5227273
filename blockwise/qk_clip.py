"""QK-Clip (Kimi K2, arXiv 2507.20534, section 2.1): no head's attention logits grow without bound."""

import torch


@torch.no_grad()
def clip_qk(model, threshold, all_reduce_max=lambda tensor: tensor):
    """Scale Q and K of each head whose largest logit of the last step, S, exceeded `threshold`, so that S becomes it.

    model: its attention modules record S of each head in the buffer `largest_logits`, (H,), while training; they
        are reset here. An infinite threshold, for a step that was not taken, only does that.
    all_reduce_max: makes of a tensor its elementwise maximum over the processes.

    The factor threshold / S of a head's logits goes in equal parts to Q and K, biases included. Where query heads
    share a K, it takes the part of the head that exceeds most, and the Q of each makes up for the rest, so that a
    head's logits are scaled by its own factor alone.
    """
    layers = [module for module in model.modules() if hasattr(module, "largest_logits")]
    found = all_reduce_max(torch.stack([layer.largest_logits for layer in layers]))  # (layers, H)
    factors = torch.where(found > threshold, threshold / found, 1.0)
    for layer, factor in zip(layers, factors, strict=True):
        factor = factor.view(layer.k_proj.out_features // layer.D, -1)  # (K, H/K)
        of_k = factor.amin(1, keepdim=True).sqrt()  # (K, 1)
        scale_heads(layer.q_proj, factor / of_k)
        scale_heads(layer.k_proj, of_k)
        layer.largest_logits.zero_()


def scale_heads(linear, factors):
    """Multiply the output of a linear layer, head by head; factors: one a head, in any shape."""
    for p in linear.parameters():
        rows = factors.flatten().repeat_interleave(len(p) // factors.numel())  # one a row of p
        if hasattr(p, "to_local"):  # sharded by FSDP, of which this process has some of the rows
            from torch.distributed.tensor import distribute_tensor

            rows = distribute_tensor(rows, p.device_mesh, p.placements, src_data_rank=None).to_local()
            p = p.to_local()
        p.mul_(rows.view(-1, *[1] * (p.ndim - 1)))
