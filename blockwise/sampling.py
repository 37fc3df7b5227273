"""The next token, drawn from the logits of a language model."""

import math

import torch

from blockwise import UserError


def sample(logits, temperature, top_k, generator, top_p=1.0):
    """Draw one id from each row of logits (B, V) -> (B, 1).

    temperature: 0 takes the likeliest. top_k: draw from that many of the likeliest, None: from all; top_p: of these
    from the fewest likeliest whose probabilities sum to it (nucleus sampling, arXiv 1904.09751).
    """
    if not logits.isfinite().all():
        raise UserError("the logits are NaN or inf: expected a model that has not diverged; in float16, dtype=float32")
    if temperature == 0:
        return logits.argmax(dim=-1, keepdim=True)
    temperature = max(temperature, torch.finfo(logits.dtype).tiny)  # below, the division would be one by 0
    logits = (logits - logits.amax(dim=-1, keepdim=True)) / temperature  # 0 at most: no temperature overflows
    if top_k is not None:
        least = logits.topk(min(top_k, logits.size(-1))).values[:, -1:]  # (B, 1)
        logits = logits.masked_fill(logits < least, -math.inf)
    p = logits.softmax(dim=-1)
    if top_p < 1:
        falling, ids = p.sort(dim=-1, descending=True, stable=True)
        beyond = falling.cumsum(dim=-1) - falling >= top_p  # (B, V): what is likelier makes top_p without it
        p = p.masked_fill(torch.zeros_like(beyond).scatter(1, ids, beyond), 0.0)
    return torch.multinomial(p, num_samples=1, generator=generator)
