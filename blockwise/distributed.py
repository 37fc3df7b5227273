"""Rank, world size and what processes agree on; torchrun's environment variables say whether there are several."""

import os
import re
import socket
import time
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from blockwise import LauncherError, UserError


@dataclass(frozen=True)
class World:
    rank: int
    size: int
    device: torch.device
    store: object = None  # the launcher's, which outlives every process

    @classmethod
    def start(cls, device, backend, timeout=timedelta(minutes=30)):
        """Join the process group, if torchrun started us. device: 'cpu', 'cuda', ...; backend: 'gloo', 'nccl', ...

        Raises UserError for a device that is not there, for one GPU that several processes would use without gloo, for
        nccl without GPUs, and for variables of the launcher that cannot be.
        """
        rank, size, local_rank = launched_as()
        if size > 1 and backend != "gloo" and re.fullmatch("cuda:[0-9]+", device):
            problem = f"the {size} processes would share one GPU, which only backend=gloo allows"
            raise UserError(f"device={device}: {problem}; expected device=cuda, one GPU for each process")
        device = find_device(device, local_rank)
        if size > 1 and backend == "nccl" and device.type != "cuda":
            raise UserError(f"backend=nccl: {size} processes on device={device} have no GPUs; expected backend=gloo")
        if device.type == "cuda":
            torch.cuda.set_device(device)
        store = None
        if size > 1:
            store = attempt_store(timeout)
            if device.type == "cuda" and backend != "gloo":
                check_one_gpu_each(store, rank, size, device)
            # small agreements are made on the CPU, so that they never wait for the device's queue
            backend = backend if backend == "gloo" else f"cpu:gloo,cuda:{backend}"
            dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
        return cls(rank, size, device, store)

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        """Leave together: who closes its connections early resets those that others are still reading from."""
        if self.size > 1 and (kind is None or issubclass(kind, UserError)):
            self.store.add("leaving", 1)
            end = time.monotonic() + 5  # a mistake in one process's data alone leaves the others waiting elsewhere
            while self.store.add("leaving", 0) < self.size and time.monotonic() < end:
                time.sleep(0.01)
            if self.store.add("leaving", 0) == self.size:  # NCCL would wait here for those that stay
                dist.destroy_process_group()

    @property
    def is_master(self):
        return self.rank == 0

    def sum(self, *values):
        """Each number summed over the processes, in float64."""
        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total)
        return total.tolist()

    def all_reduce_sum(self, tensors):
        """A list of tensors, each summed over the processes."""
        if self.size == 1:
            return tensors
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(flat)
        pieces = flat.split([tensor.numel() for tensor in tensors])
        return [piece.view_as(tensor) for piece, tensor in zip(pieces, tensors, strict=True)]

    def all_reduce_max(self, tensor):
        """A tensor's largest values over the processes, element by element."""
        if self.size > 1:
            dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return tensor

    def gather(self, value):
        """Each process's value, plain data, in the order of ranks; every rank gets all."""
        values = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value)
        return values

    def any(self, flag):
        return self.sum(float(bool(flag)))[0] > 0

    def on_master(self, function, *args):
        """Call on rank 0 alone; every rank gets the result, or the UserError."""
        answer = [None, None]
        if self.is_master:
            try:
                answer[0] = function(*args)
            except (UserError, OSError) as error:
                answer[1] = UserError(str(error))
        if self.size > 1:
            dist.broadcast_object_list(answer, device=torch.device("cpu"))
        if answer[1] is not None:
            raise answer[1]
        return answer[0]


def launched_as():
    """(rank, number of processes, rank on this machine), of torchrun's variables; (0, 1, 0) without them.

    Raises LauncherError for variables that are half set or impossible: a process would train on its own, or wait for
    others for ever.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    given = {name: os.environ[name] for name in names if name in os.environ}
    if not given:
        return 0, 1, 0
    expected = f"{', '.join(f'{k}={v}' for k, v in given.items())}: expected all of torchrun's variables, or none"
    for name in names:
        if not given.get(name, "").isdecimal():
            raise LauncherError(f"{name} is {'no number' if name in given else 'not set'}, with {expected}")
    rank, size, local_rank = (int(given[name]) for name in names)
    if not local_rank <= rank < size:
        raise LauncherError(f"impossible ranks, {expected} with LOCAL_RANK <= RANK < WORLD_SIZE")
    if size > 1 and not {"MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        raise LauncherError(f"WORLD_SIZE={size} without MASTER_ADDR and MASTER_PORT: expected torchrun to set them")
    return rank, size, local_rank


def attempt_store(timeout):
    """The launcher's store, under a prefix of this attempt.

    torchrun keeps one store over its restarts, and a worker that is quicker than its peers would find their addresses
    of the attempt before in it (seen with torch 2.13 in half of the restarts). On several machines the launchers'
    counts differ, so there the store is used as it is.
    """
    store, _, _ = next(dist.rendezvous("env://", timeout=timeout))
    one_machine = os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]
    return dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0) if one_machine else 0}", store)


def check_one_gpu_each(store, rank, size, device):
    """Raises UserError, on all processes alike, where two of them have the same GPU."""
    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    store.set(f"gpu {rank}", f"{socket.gethostname()} {uuid or device.index}")
    gpus = len(set(store.multi_get([f"gpu {other}" for other in range(size)])))
    if gpus < size:
        problem = f"{size} processes on {gpus} GPU{'s' * (gpus > 1)}, and only backend=gloo lets them share one"
        raise UserError(f"{problem}; expected nproc_per_node to be the number of GPUs of each machine")


def auto_device(name):
    """'auto' decided by what there is."""
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


def auto_dtype(name, device):
    """'auto' decided: bfloat16 on a CUDA device that computes in it, else float32."""
    if name != "auto":
        return name
    cuda = str(device).startswith("cuda") and torch.cuda.is_available()
    return "bfloat16" if cuda and has_bfloat16() else "float32"


def has_bfloat16():
    """Whether the CUDA device computes in bfloat16 itself."""
    return torch.cuda.is_bf16_supported(including_emulation=False)


def find_device(name, local_rank=0):
    """The torch.device of this process. Raises UserError for one that is not there.

    Of several GPUs "cuda" is the one numbered local_rank. A single one is taken whatever that is: SLURM shows each of
    its tasks only the task's own.
    """
    if not re.fullmatch(r"cpu|mps|cuda(:[0-9]{1,4})?", name):
        raise UserError(f"device={name}: expected cpu, cuda, cuda:N or mps")
    device = torch.device(name)
    available = {"cpu": lambda: True, "cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available}
    if not available[device.type]():
        raise UserError(f"device={name}: no {device.type.upper()} device here, expected device=cpu")
    if device.type != "cuda":
        return device
    gpus = torch.cuda.device_count()
    index = device.index if device.index is not None else local_rank if gpus > 1 else 0
    if index >= gpus:
        raise UserError(f"device={name}: process {local_rank} has no GPU, {gpus} here")
    return torch.device("cuda", index)
