"""Speed of training: step time, tokens a second, MFU, the time left. Evaluation and saving do not count."""

import time

import torch

from blockwise.hardware import peak_flops, peak_memory_mb

ETA_AFTER = 10  # steps that the time left is not judged by


class Throughput:
    """`start` and `stop` enclose what counts of a step; `row` gives the figures since the row before."""

    def __init__(self, model, world, dtype, tokens_per_step, first_step, last_step):
        self.device, self.model, self.size = world.device, model, world.size
        self.tokens_per_step = tokens_per_step
        self.peak = peak_flops(world.device, getattr(torch, dtype))
        self.eta_from, self.last_step = first_step + ETA_AFTER, last_step
        self.seconds, self.steps = 0.0, 0
        self.eta_start = self.eta = None

    def start(self):
        self.started = time.perf_counter()

    def stop(self, step):
        now = time.perf_counter()
        self.seconds, self.steps = self.seconds + now - self.started, self.steps + 1
        if step == self.eta_from:
            self.eta_start = now
        elif step > self.eta_from:
            self.eta = (now - self.eta_start) / (step - self.eta_from) * (self.last_step - step - 1)

    def row(self):
        """tokens_per_s, step_ms, mfu (None where the device's peak is not known), mem_mb."""
        tokens_per_s = self.tokens_per_step * self.steps / self.seconds
        step_ms = 1000 * self.seconds / self.steps
        self.seconds, self.steps = 0.0, 0
        mfu = self.peak and self.model.flops_per_token() * tokens_per_s / (self.peak * self.size)
        return {"tokens_per_s": tokens_per_s, "step_ms": step_ms, "mfu": mfu, "mem_mb": peak_memory_mb(self.device)}
