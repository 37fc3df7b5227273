"""The sides of bench/throughput.py: our model, Hugging Face's and nanoGPT's form, each with its optimizer.

Each builder returns (loss of x and y (B, T), update, operations per token or None). torch is loaded in them, so that
the time to a side's first step has it.
"""

import importlib.util
import sys
from pathlib import Path

from harness import ROOT, model_config

PRODUCTS = ("torch's product", "our product")
BETAS, DECAY, CLIP = (0.9, 0.95), 0.1, 1.0


def ours(args, device):
    import torch
    from torch.nn.utils import clip_grads_with_norm_, get_total_norm

    from blockwise.blocks import param_groups
    from blockwise.optimizers import build_optimizer
    from model import Transformer

    if device == "cuda":
        torch.set_float32_matmul_precision("high")  # as train.py does
    shape = (args.vocab, args.block, args.layers, args.heads, args.width)
    model = Transformer(model_config(args.model, *shape)).to(device)
    optimizer = build_optimizer("adamw", param_groups(model, lr=1e-5, weight_decay=DECAY), BETAS)
    parameters = list(model.parameters())

    def update():
        norm = get_total_norm([p.grad for p in parameters])
        clip_grads_with_norm_(parameters, CLIP, norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return compiled(model, args), update, model.flops_per_token()


def hugging_face(args, device):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=args.vocab, hidden_size=args.width, intermediate_size=4 * args.width, use_cache=False,
            num_hidden_layers=args.layers, num_attention_heads=args.heads, max_position_embeddings=args.block,
            bos_token_id=None, eos_token_id=None,
        )
    ).to(device)  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, betas=BETAS, weight_decay=DECAY)
    run = compiled(model, args)
    return lambda x, y: run(input_ids=x, labels=x).loss, clipped(model, optimizer), None


def nanogpt(args, device):

    path = Path(args.peer_path) / "model.py" if args.peer_path else ROOT / "bench" / "nano.py"
    spec = importlib.util.spec_from_file_location("peer", path)
    peer = sys.modules["peer"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(peer)
    config = peer.GPTConfig(
        block_size=args.block, vocab_size=args.vocab, n_layer=args.layers, n_head=args.heads, n_embd=args.width,
        dropout=0.0, bias=False,
    )  # fmt: skip
    model = peer.GPT(config).to(device)
    optimizer = model.configure_optimizers(DECAY, 1e-5, BETAS, device)
    run = compiled(model, args)
    return lambda x, y: run(x, y)[1], clipped(model, optimizer), None


def compiled(model, args):
    import torch

    return torch.compile(model) if args.compile else model


def clipped(model, optimizer):
    import torch

    def update():
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return update


def large_product(args, device):
    """A function that multiplies two large matrices, and the operations that this takes."""
    import torch

    from blockwise.matmul import product

    n, dtype = (2048, torch.float32) if device == "cpu" else (8192, torch.bfloat16)
    a, b = torch.randn(2, n, n, device=device, dtype=dtype)
    return (lambda: a @ b) if args.side == PRODUCTS[0] else (lambda: product(a, b)), 2 * n**3
