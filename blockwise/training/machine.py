"""Device, precision, compiler and backend for the machine at hand, and torch's global settings."""

import gc
import os
from contextlib import contextmanager
from dataclasses import replace

import torch

from blockwise import UserError, first_line
from blockwise.data.mixture import open_dataset
from blockwise.distributed import auto_device, auto_dtype, find_device
from blockwise.hardware import free_memory

# In the texts of errors of cuBLAS, NCCL, the CUDA driver and the CPU's allocator that have no class of their own
NO_MEMORY = ("out of memory", "ALLOC_FAILED", "can't allocate memory")


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


def check_machine(configs, device):
    """Raises UserError for a device that is not there (None: any is), and for data that are missing or broken."""
    if device:
        find_device(auto_device(device))
    for kind in dict.fromkeys((c.data_dir, c.dataset, c.block_size, c.vocab_size) for c in configs):
        open_dataset(*kind).verify()


def set_up_torch(config):
    """torch's settings for this process, and the seed of what is drawn before the first step: the weights."""
    if config.device.startswith("cuda"):
        torch.set_float32_matmul_precision("high")  # TF32
    if config.compile:
        torch.compiler.reset()  # what an earlier run of this process compiled counts towards the compiler's limits
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # Compiled for a CPU, the embedding's gradient would be summed by threads in the order in which they come
    torch.use_deterministic_algorithms(config.deterministic or (config.compile and config.device == "cpu"))
    torch.utils.deterministic.fill_uninitialized_memory = False  # it costs a pass over every new tensor
    torch.manual_seed(config.seed)


@contextmanager
def collecting_by_hand():
    """Inside, Python looks for garbage where gc.collect() is called, and not in the middle of a step.

    A look takes a process up to half a second, for which all others wait; what there is already is left out of it.
    """
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


class OutOfMemory(UserError):
    """Memory is short on one process, of which the others do not know."""

    every_rank = True


@contextmanager
def out_of_memory_is_a_mistake(config, device):
    """Inside, running out of memory is the user's mistake: one line that says which keys to change."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(out_of_memory_message(config, device)) from None


def is_out_of_memory(error):
    """Whether an error comes from running out of memory, directly or as the cause of another, as in the compiler."""
    while error is not None and not isinstance(error, torch.OutOfMemoryError | MemoryError):
        if isinstance(error, RuntimeError) and any(text in str(error) for text in NO_MEMORY):
            return True
        error = error.__cause__ or error.__context__
    return error is not None


def root_cause(error):
    """Kind and first line of what an error was raised for: the compiler's own says no more than that there was one."""
    while cause := getattr(error, "inner_exception", None) or error.__cause__:
        error = cause
    return f"{type(error).__name__}: {first_line(error)}"


def out_of_memory_message(config, device):
    free = "" if (left := free_memory(device)) is None else f", {left / 1e6:,.0f} MB are free"
    curvature = ", or lower curvature_micro_batch" if config.curvature_interval or config.sharpness_interval else ""
    return (
        f"out of memory on {device}{free}: lower batch_size={config.batch_size} and raise gradient_accumulation_steps, "
        f"or set activation_checkpointing=True (it is {config.activation_checkpointing}){curvature}; "
        "--dry_run estimates what fits"
    )
