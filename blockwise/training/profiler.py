"""profile=True: a trace of a few steps."""

import os

import torch


class Profiler:
    """Traces steps 5 to 7 of rank 0 into out_dir/trace.json, for chrome://tracing or Perfetto."""

    def __init__(self, config, world):
        self.profiler = None
        if config.profile and world.is_master:
            self.profiler = torch.profiler.profile(
                schedule=torch.profiler.schedule(wait=4, warmup=1, active=3, repeat=1),
                on_trace_ready=lambda p: p.export_chrome_trace(os.path.join(config.out_dir, "trace.json")),
            )
            self.profiler.start()

    def step(self):
        if self.profiler:
            self.profiler.step()

    def stop(self):
        if self.profiler:
            self.profiler.stop()
