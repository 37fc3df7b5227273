"""profile=True: a trace of a few steps."""

import os

import torch

from blockwise import warn


class Profiler:
    """Traces steps 5 to 7 of rank 0 into out_dir/trace.json, for chrome://tracing or Perfetto."""

    def __init__(self, config, world):
        self.profiler, self.path, self.written = None, os.path.join(config.out_dir, "trace.json"), False
        if config.profile and world.is_master:
            self.profiler = torch.profiler.profile(
                schedule=torch.profiler.schedule(wait=4, warmup=1, active=3, repeat=1),
                on_trace_ready=self.write,
            )
            self.profiler.start()

    def write(self, profiler):
        profiler.export_chrome_trace(self.path)
        self.written = True

    def step(self):
        if self.profiler:
            self.profiler.step()

    def stop(self):
        if self.profiler:
            self.profiler.stop()
            if not self.written:
                warn(f"profile=True: no {self.path}, since this run ended before its sixth step")
