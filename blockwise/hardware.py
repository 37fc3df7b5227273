"""Peak rate of the device, free and used memory, and the estimate of a step's memory."""

import os
import platform
import re
import resource
import sys
import weakref
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Dense bf16 or fp16 rate from the makers' data sheets, in 1e12 operations per second. Words of the device's name, in
# this order and side by side; the first match counts.
PEAK_TFLOPS = (
    ("B300", 2250), ("GB300", 2500), ("B200", 2250), ("GB200", 2500), ("H200", 989), ("GH200", 989), ("H100 PCIe", 756),
    ("H100 NVL", 835), ("H100", 989), ("A100", 312), ("A800", 312), ("H800", 989), ("L40S", 362), ("L40", 181),
    ("L4", 121), ("A10G", 70), ("A10", 125), ("A30", 165), ("A40", 150), ("RTX A6000", 155), ("RTX 5090", 210),
    ("RTX 4090", 165), ("RTX 3090", 71), ("V100", 125), ("T4", 65),
)  # fmt: skip
OTHER_CARDS = {"MIG", "Laptop", "Max", "D", "Ti", "SUPER"}  # words that make a slice, or another card, of a name


# Measured with glibc on models of 1 to 30 million parameters; docs/performance.md has estimates beside measurements
HEAP = 1.3
FIRST_STEP = 45e6


def peak_flops(device, dtype):
    """Operations per second of a matrix product on `device`, or None where it is not known (CPUs, float32)."""
    if device.type != "cuda" or dtype == torch.float32:
        return None
    words = re.split(r"[\s-]+", torch.cuda.get_device_name(device))
    if OTHER_CARDS & set(words):
        return None
    return next((tera * 1e12 for name, tera in PEAK_TFLOPS if f" {name} " in f" {' '.join(words)} "), None)


def peak_memory_mb(device):
    """Largest memory held so far, in MB: allocated on a CUDA device, else resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    if sys.platform == "linux":  # getrusage would count what the parent held when it started us
        return proc_bytes("self/status", "VmHWM") / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def free_memory(device):
    """Bytes that may still be taken on `device`, or None where that is not known."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if sys.platform == "linux":  # the machine's processes of this run share it
        return proc_bytes("meminfo", "MemAvailable") // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return None


def resident_memory(device):
    """Bytes that a process holds besides tensors: what it has now, and what its first step loads; none on a GPU."""
    if device.type == "cuda" or sys.platform != "linux":
        return 0
    return proc_bytes("self/status", "VmRSS") + FIRST_STEP


def proc_bytes(file, name):
    return int(re.search(rf"{name}:\s+(\d+) kB", Path("/proc", file).read_text())[1]) * 1024


def device_name(device):
    """What a device is called by its maker: the name of the GPU, or of the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo").read_text() if sys.platform == "linux" else ""
    model = re.search(r"model name\s*: (.+)", info)
    return model[1] if model else platform.processor() or platform.machine()


def autocast(device, dtype):
    """The context in which a model computes in `dtype`; it may be entered any number of times."""
    return torch.autocast(device.type, dtype) if dtype != torch.float32 else nullcontext()


@contextmanager
def nothing_allocated(device):
    """Inside, tensors are on `device`, and none is allocated; yields the LiveBytes that counts them."""
    from torch._subclasses.fake_tensor import FakeTensorMode  # slow to load, and not always wanted

    with FakeTensorMode(), torch.device(device), LiveBytes(HEAP if device.type == "cpu" else 1.0) as live:
        yield live


def training_memory(make_model, batch_size, block_size, micro_steps, device, dtype):
    """Estimate of what tensors take at most, in bytes, while gradients are made; without the optimizer's state.

    Found by following up to two micro-steps of (batch_size, block_size) tokens. make_model: builds the model on the
    default device.
    """
    with nothing_allocated(device) as live:
        model = make_model()
        for _ in range(min(micro_steps, 2)):  # from the second on there are gradients all the time
            tokens = torch.zeros(batch_size, block_size, dtype=torch.int64)
            with autocast(device, dtype):
                loss = model(tokens, tokens)
            loss.backward()
            del loss
    return live.peak


def at_depth(needed, layers):
    """needed(layers), in bytes, of a deep model: each further layer adds what the second one does.

    Following a step takes seconds a layer; this follows three layers at any depth.
    """
    first = needed(1)
    return first + (layers - 1) * (needed(2) - first) if layers > 1 else first


class LiveBytes(TorchDispatchMode):
    """Inside, `now` and `peak` count the bytes of the storages that operators made and that still live.

    heap: what the C library takes for a byte of its heap, which has gaps; blocks from 32 MB on are not from there.
    """

    def __init__(self, heap=1.0):
        super().__init__()
        self.heap = heap
        self.now = self.peak = 0
        self.counted = weakref.WeakSet()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage() not in self.counted:
                self.add(tensor.untyped_storage())
        return result

    def add(self, storage):
        size = storage.nbytes()
        size *= self.heap if size < 1 << 25 else 1
        self.counted.add(storage)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self.free, size)

    def free(self, size):
        self.now -= size
