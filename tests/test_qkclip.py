"""QK-Clip: what is recorded, what is scaled, and runs with it."""

import math

import pytest
import torch
from conftest import losses, out_dir, run
from helpers import KINDS, batch, make

import model as model_file
from blockwise import UserError
from blockwise.qk_clip import clip_qk


def logits_of(model, monkeypatch):
    """Attention logits of every layer, (layers, B, H, T, T), with -inf for the future."""
    seen, attend = [], torch.nn.functional.scaled_dot_product_attention

    def noting(q, k, v, *mask, **options):
        k_of_heads = k.repeat_interleave(q.size(1) // k.size(1), dim=1)
        logits = torch.einsum("bhtd,bhsd->bhts", q, k_of_heads) / math.sqrt(q.size(-1))
        seen.append(logits.masked_fill(torch.ones_like(logits).triu(1).bool(), -math.inf).detach())
        return attend(q, k, v, *mask, **options)

    with monkeypatch.context() as patch:
        patch.setattr(model_file.F, "scaled_dot_product_attention", noting)
        model(*batch())
    return torch.stack(seen)


def head_sizes(linear):
    return linear.weight.detach().unflatten(0, (-1, 8)).norm(dim=(1, 2))


@pytest.mark.parametrize("kind", KINDS)
def test_a_head_above_the_threshold_is_scaled_onto_it(kind, monkeypatch):
    """By its own factor alone, its layer's other heads not at all, also where heads share their keys."""
    model = make(kind, qk_clip=1.0, bias=True).train()
    before = logits_of(model, monkeypatch)
    largest = before.amax((1, 3, 4))  # (layers, H)
    torch.testing.assert_close(torch.stack([b.attn.largest_logits for b in model.blocks]).double(), largest)
    threshold = largest[0].median().item()
    keys = model.blocks[0].attn.k_proj
    size = head_sizes(keys)
    clip_qk(model, threshold)
    scale = head_sizes(keys) / size
    after = logits_of(model, monkeypatch)
    factor = torch.where(largest > threshold, threshold / largest, 1.0)[:, None, :, None, None]
    torch.testing.assert_close(scale, factor[0].view(len(scale), -1).amin(1).sqrt())
    assert (factor[0] < 1).any() and (factor[0] == 1).any()
    torch.testing.assert_close(after[0], before[0] * factor[0])  # later layers have another input now
    assert after[0].max().item() == pytest.approx(threshold)


def test_records_start_anew(monkeypatch):
    model = make("llama", qk_clip=1.0).train()
    model(*batch())
    clip_qk(model, math.inf)
    before = [p.clone() for p in model.parameters()]
    assert not any(b.attn.largest_logits.any() for b in model.blocks)
    model.eval()(*batch())
    assert not any(b.attn.largest_logits.any() for b in model.blocks)
    clip_qk(model, 1e-3)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    assert not any("largest" in name for name in model.state_dict())


def test_runs(small, tmp_path):
    """Resumed exactly; a threshold that nothing reaches changes no bit."""
    words = (*small, "--learning_rate=1e-4", "--qk_clip=1e-3", "--bias=True", "--model_type=llama", "--n_kv_head=1")
    folders = [f"--out_dir={tmp_path / name}" for name in ("straight", "off", "high")]
    straight, off, high = ((*words, folder) for folder in folders)
    run(*straight)
    run(*words, "--max_iters=5")
    run(*words, "--init_from=resume")
    assert losses(words) == losses(straight)
    run(*off, "--qk_clip=0")
    run(*high, "--qk_clip=1e6")
    assert losses(off) == losses(high) != losses(straight)
    weights = [torch.load(out_dir(w) / "ckpt_00000008.pt", weights_only=True)["model"] for w in (straight, off)]
    assert weights[0].keys() == weights[1].keys()
    scale = [w["blocks.0.attn.q_proj.weight"].std() for w in weights]
    assert scale[0] < scale[1] / 2


@pytest.mark.parametrize("words", [("--qk_clip=-1",), ("--qk_clip=10", "--qk_norm=True")])
def test_mistakes(small, words):
    with pytest.raises(UserError, match="qk_clip="):
        run(*small, *words)
