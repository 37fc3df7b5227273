"""The sides of bench/throughput.py, each in a process of its own: our model, Hugging Face's and nanoGPT's form.

Each builder returns (loss of x and y (B, T), update, operations per token or None). torch is loaded in them, so that
the time to a side's first step has it.
"""

import importlib.util
import multiprocessing
import sys
import time
from dataclasses import astuple, dataclass
from pathlib import Path
from statistics import median

from harness import ROOT, model_config

from blockwise import UserError, first_line

PRODUCTS = ("torch's product", "our product")
PEERS = {"llama": "hugging face", "gpt2": "nanogpt"}
BETAS, DECAY, CLIP = (0.9, 0.95), 0.1, 1.0


@dataclass
class Shape:
    """Of a model, "llama" or "gpt2", and of a step: tokens per sequence, sequences."""

    model: str
    layers: int
    heads: int
    width: int
    block: int
    vocab: int
    batch: int


SHAPES = {
    "cpu": {"llama": (4, 4, 128, 256, 4096, 16), "gpt2": (6, 6, 384, 256, 50304, 4)},
    "cuda": {"llama": (8, 16, 1024, 1024, 50304, 8), "gpt2": (12, 12, 768, 1024, 50304, 12)},
}


def ours(shape, device, nanogpt_path):
    import torch
    from torch.nn.utils import clip_grads_with_norm_, get_total_norm

    from blockwise.blocks import param_groups
    from blockwise.optimizers import build_optimizer
    from model import Transformer

    if device == "cuda":
        torch.set_float32_matmul_precision("high")  # as train.py does
    kind, layers, heads, width, block, vocab, _ = astuple(shape)
    model = Transformer(model_config(kind, vocab, block, layers, heads, width)).to(device)
    optimizer = build_optimizer("adamw", param_groups(model, lr=1e-5, weight_decay=DECAY), BETAS)
    parameters = list(model.parameters())

    def update():
        norm = get_total_norm([p.grad for p in parameters])
        clip_grads_with_norm_(parameters, CLIP, norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return model, lambda run, x, y: run(x, y), update, model.flops_per_token()


def hugging_face(shape, device, nanogpt_path):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=shape.vocab, hidden_size=shape.width, intermediate_size=4 * shape.width, use_cache=False,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads, max_position_embeddings=shape.block,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, betas=BETAS, weight_decay=DECAY)
    return model, lambda run, x, y: run(input_ids=x, labels=x).loss, clipped(model, optimizer), None


def nanogpt(shape, device, nanogpt_path):
    path = Path(nanogpt_path) / "model.py" if nanogpt_path else ROOT / "bench" / "nano.py"
    spec = importlib.util.spec_from_file_location("peer", path)
    peer = sys.modules["peer"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(peer)
    config = peer.GPTConfig(
        block_size=shape.block, vocab_size=shape.vocab, n_layer=shape.layers, n_head=shape.heads, n_embd=shape.width,
        dropout=0.0, bias=False,
    )  # fmt: skip
    model = peer.GPT(config).to(device)
    optimizer = model.configure_optimizers(DECAY, 1e-5, BETAS, device)
    return model, lambda run, x, y: run(x, y)[1], clipped(model, optimizer), None


def clipped(model, optimizer):
    import torch

    def update():
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return update


def training_step(name, shape, device, nanogpt_path):
    """A function that takes an optimizer step and returns the loss, and its operations (None: only ours counts)."""
    import torch

    from blockwise.hardware import autocast

    build = {"ours": ours, "hugging face": hugging_face, "nanogpt": nanogpt}[name.removesuffix(" compiled")]
    model, loss_of, update, flops_per_token = build(shape, device, nanogpt_path)
    run = torch.compile(model) if name.endswith(" compiled") else model
    tokens = torch.randint(shape.vocab, (shape.batch, shape.block + 1), generator=torch.Generator().manual_seed(0))
    x, y = (z.contiguous().to(device) for z in (tokens[:, :-1], tokens[:, 1:]))  # (B, T) each
    precision = autocast(torch.device(device), torch.bfloat16 if device == "cuda" else torch.float32)

    def step():
        with precision:
            loss = loss_of(run, x, y)
        loss.backward()
        update()
        return loss

    return step, flops_per_token and flops_per_token * shape.batch * shape.block


def large_product(name, device):
    """A function that multiplies two large matrices, and the operations that this takes."""
    import torch

    from blockwise.matmul import product

    n, dtype = (2048, torch.float32) if device == "cpu" else (8192, torch.bfloat16)
    a, b = torch.randn(2, n, n, device=device, dtype=dtype)
    return (lambda: a @ b) if name == PRODUCTS[0] else (lambda: product(a, b)), 2 * n**3


def serve(pipe, name, shape, device, nanogpt_path):
    """Send what the side is; for each True received the seconds of a step; in the end the peak MB, or an error."""
    started = time.perf_counter()
    import torch

    from blockwise.hardware import peak_memory_mb

    synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None
    torch.manual_seed(0)
    try:
        is_product = name in PRODUCTS
        step, flops = large_product(name, device) if is_product else training_step(name, shape, device, nanogpt_path)
        first = step()
        synchronize()
        warm = time.perf_counter() - started
        for _ in range(2):
            step()
        synchronize()
        loss = None if is_product else first.item()
        pipe.send({"first_step_s": warm, "first_loss": loss, "flops": flops, "threads": torch.get_num_threads()})
        while pipe.recv():
            started, steps = time.perf_counter(), 0
            while steps == 0 or time.perf_counter() - started < 0.3:
                step()
                synchronize()
                steps += 1
            pipe.send((time.perf_counter() - started) / steps)
        pipe.send(peak_memory_mb(torch.device(device)))
    except EOFError:  # nobody asks any more
        return
    except Exception as error:  # of torch or of the peer: out of memory, for example
        pipe.send(UserError(f"{name}: {type(error).__name__}: {first_line(error)}"))


class Side:
    """A process that takes a measured step when asked. Raises UserError where it fails, ends, or is not done by `end`.

    end: a time of time.monotonic(), or None to wait for as long as it takes.
    """

    def __init__(self, name, shape, device, nanogpt_path=None, end=None, target=serve):
        self.name, self.times, self.end = name, [], end
        spawn = multiprocessing.get_context("spawn")
        self.pipe, theirs = spawn.Pipe()
        self.process = spawn.Process(target=target, args=(theirs, name, shape, device, nanogpt_path), daemon=True)
        self.process.start()
        theirs.close()

    def answer(self):
        try:
            answer = self.pipe.recv() if self.pipe.poll(self.end and max(0, self.end - time.monotonic())) else None
        except EOFError:
            answer = None
        if answer is None:
            self.process.kill()
        if answer is None or isinstance(answer, UserError):
            raise answer or UserError(f"{self.name}: its process ended, or took too long")
        return answer

    def measure(self):
        self.pipe.send(True)
        self.times.append(self.answer())

    def close(self):
        """The peak of the process's memory, in MB."""
        self.pipe.send(False)
        peak = self.answer()
        self.process.join()
        return peak

    @property
    def seconds(self):
        return median(self.times)
