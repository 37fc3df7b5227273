"""The machine that a run has: device, precision, compiler and backend by what is there, and torch's global settings."""

import os
from dataclasses import replace

import torch

from blockwise.distributed import auto_device, auto_dtype


def for_this_machine(config):
    """config with every "auto" of the machine decided, by what there is and never by timing."""
    device = auto_device(config.device)
    cuda = device.startswith("cuda")
    return replace(
        config,
        device=device,
        dtype=auto_dtype(config.dtype, device),
        compile=cuda if config.compile == "auto" else config.compile,
        backend=("nccl" if cuda else "gloo") if config.backend == "auto" else config.backend,
    )


def set_up_torch(config):
    """torch's settings for this process, and the seed of what is drawn before the first step: the weights."""
    if config.device.startswith("cuda"):
        torch.set_float32_matmul_precision("high")  # TF32
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # Compiled for a CPU, the embedding's gradient would be summed by threads in the order in which they come
    torch.use_deterministic_algorithms(config.deterministic or (config.compile and config.device == "cpu"))
    torch.utils.deterministic.fill_uninitialized_memory = False  # it costs a pass over every new tensor
    torch.manual_seed(config.seed)


def to_device(x, device):
    """A batch on its way to the device; the copy to a GPU does not wait."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)
