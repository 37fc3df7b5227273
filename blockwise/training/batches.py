"""The batches that a process trains on, by address; on CUDA the next one is fetched while the device computes."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from blockwise.data.mixture import MixedSplit
from blockwise.loader import eval_starts, full_batches, micro_seed, train_batch, train_starts


class TrainBatches:
    """batches(step, micro): this process's micro-step `micro` of a step, x and y (B, T) on its device.

    Fetched ahead or not, a batch is the same, and a bad token id raises UserError where its batch is asked for. On a
    CPU nothing is fetched ahead: the thread takes longer than the batch.
    """

    def __init__(self, config, split, world, ahead=None):
        """ahead: fetch the next batch in a thread (None: on CUDA)."""
        self.config, self.split, self.world = config, split, world
        self.seed = config.seed if config.data_seed is None else config.data_seed
        self.micro_steps = config.gradient_accumulation_steps // world.size
        cuda = world.device.type == "cuda"
        # On its device: on the default one, 0, the thread of every process would claim memory of the same GPU
        on_device = {"initializer": torch.cuda.set_device, "initargs": (world.device,)} if cuda else {}
        self.worker = ThreadPoolExecutor(1, **on_device) if (cuda if ahead is None else ahead) else None
        self.address = self.pending = None
        self.stream = torch.cuda.Stream(world.device) if cuda else None
        shape = (2, config.batch_size, config.block_size)
        self.pinned = torch.empty(shape, dtype=torch.int64, pin_memory=True) if cuda else None

    def __call__(self, step, micro):
        if not self.worker:
            return self.fetch(step, micro)
        if self.address != (step, micro):
            self.pending = self.worker.submit(self.fetch, step, micro)
        x, y = self.pending.result()
        if self.stream:  # their memory may be used again only after what is queued here
            x.record_stream(torch.cuda.current_stream(x.device))
        self.address = (step, micro + 1) if micro + 1 < self.micro_steps else (step + 1, 0)
        self.pending = self.worker.submit(self.fetch, *self.address)
        return x, y

    def dropout_seed(self, step, micro):
        """Seed of the dropout of this process's micro-step."""
        return micro_seed(self.config.seed, step, micro * self.world.size + self.world.rank)

    def shares(self, step):
        """share/NAME of each part of a mixture, in the sequences of this step on all processes; else {}."""
        if not isinstance(self.split, MixedSplit):
            return {}
        config, micros = self.config, range(self.config.gradient_accumulation_steps)
        address = (self.split, self.seed, step)
        starts = [train_starts(*address, micro, config.batch_size, config.block_size) for micro in micros]
        return self.split.share_row(np.concatenate(starts))

    def fetch(self, step, micro):
        config, device = self.config, self.world.device
        share = micro * self.world.size + self.world.rank
        batch = train_batch(self.split, self.seed, step, share, config.batch_size, config.block_size)
        if not self.stream:
            return [z.to(device) for z in batch]
        with torch.cuda.stream(self.stream):
            moved = torch.stack(batch, out=self.pinned).to(device, non_blocking=True)  # (2, B, T)
        self.stream.synchronize()  # this thread alone waits, before it fills the buffer again
        return moved.unbind()


def eval_batches(split, config, world, half, full):
    """This process's share of the fixed validation sequences: x and y (B, T), and whether the batch counts.

    Every process has as many batches, or FSDP would deadlock; some then have one twice.
    half: with test_loss, which half of the text; full: all of it, in as many batches as that takes.
    """
    half = half if config.test_loss else None
    batches = full_batches(split, config.batch_size, config.block_size, half) if full else config.eval_iters
    starts = eval_starts(split, batches * config.batch_size, config.block_size, half)
    for first in range(0, batches, world.size):
        number = first + world.rank
        begin = min(number, batches - 1) * config.batch_size
        batch = split.sequences(starts[begin : begin + config.batch_size], config.block_size)
        if world.device.type == "cuda":
            batch = [z.pin_memory() for z in batch]
        x, y = (z.to(world.device, non_blocking=True) for z in batch)
        yield x, y, number < batches
