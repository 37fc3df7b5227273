"""One process or many: who am I, and what do all of us agree on. Under torchrun its variables say so."""

import os
import threading
import time
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from blockwise import UserError


@dataclass(frozen=True)
class World:
    rank: int
    size: int
    device: torch.device

    @classmethod
    def start(cls, device, backend, timeout=timedelta(minutes=30)):
        """Join the process group, if torchrun started us. device: 'cpu', 'cuda', ...; backend: 'gloo', 'nccl', ...

        Raises UserError for a device that is not there.
        """
        rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        device = find_device(device, int(os.environ.get("LOCAL_RANK", 0)))
        if device.type == "cuda":
            torch.cuda.set_device(device)
        if "RANK" in os.environ:
            threading.Thread(target=end_with_parent, args=(os.getppid(),), daemon=True).start()
        if size > 1:
            # small agreements are made on the CPU, so that they never wait for the device's queue
            dist.init_process_group(backend if backend == "gloo" else f"cpu:gloo,cuda:{backend}", timeout=timeout)
        return cls(rank, size, device)

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

    def any(self, flag):
        return self.sum(float(bool(flag)))[0] > 0

    def on_master(self, function, *args):
        """Call on rank 0 alone; every rank gets the result, or the UserError."""
        answer = [None, None]
        if self.is_master:
            try:
                answer[0] = function(*args)
            except UserError as error:
                answer[1] = error
        if self.size > 1:
            dist.broadcast_object_list(answer, device=torch.device("cpu"))
        if answer[1] is not None:
            raise answer[1]
        return answer[0]

    def stop(self):
        if self.size > 1:
            dist.destroy_process_group()


def find_device(name, local_rank):
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda", "mps"):
        raise UserError(f"device={name}: expected cpu, cuda, cuda:N or mps")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device={name}: no CUDA device here, expected device=cpu")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError(f"device={name}: no MPS device here, expected device=cpu")
    if device.type == "cuda":
        index = local_rank if device.index is None else device.index
        if index >= torch.cuda.device_count():
            raise UserError(f"device={name}: process {local_rank} has no GPU, {torch.cuda.device_count()} here")
        device = torch.device("cuda", index)
    return device


def end_with_parent(parent):
    """Leave at once when the launcher is gone: orphans would hold the run's lock and wait for each other."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
