"""One side of a comparison in its own process: a model and its optimizer, which take steps when asked.

    python bench/accept/sides.py JSON       # of the side, the model's shape, compile, device

Reads a command a line, {"do": "warm" | "time" | "micro", "batch": B}, and answers each with a line. Between commands it
holds weights and optimizer state only, so that several sides share a device's memory.
"""

import json
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parents[2]
sys.path[:1] = [str(ROOT / "bench"), str(ROOT)]


class Side:
    def __init__(self, args):
        import throughput
        import torch

        from blockwise.hardware import autocast

        self.torch, self.args, self.device = torch, args, args.device
        self.cuda = args.device.startswith("cuda")
        torch.set_float32_matmul_precision("high")  # of every side alike
        torch._dynamo.config.automatic_dynamic_shapes = False  # a graph for each batch size, as in a run
        torch.manual_seed(0)
        build = {"ours": throughput.ours, "hugging face": throughput.hugging_face, "nanogpt": throughput.nanogpt}
        self.loss_of, self.update, _ = build[args.side](args, args.device)
        self.precision = autocast(torch.device(args.device), torch.bfloat16 if self.cuda else torch.float32)
        self.batch = None

    def micro(self):
        with self.precision:
            loss = self.loss_of(*self.batch)
        loss.backward()
        return loss

    def step(self):
        loss = self.micro()
        self.update()
        return loss

    def warm(self, batch):
        """Takes the steps that do not count; peak memory of one more, the loss of the first."""
        if self.args.compile:
            self.torch.compiler.reset()
        generator = self.torch.Generator().manual_seed(0)
        tokens = self.torch.randint(self.args.vocab, (batch, self.args.block + 1), generator=generator)
        self.batch = [z.contiguous().to(self.device) for z in (tokens[:, :-1], tokens[:, 1:])]  # (B, T) each
        first = self.step().item()
        self.step()
        if not self.cuda:
            return {"first_loss": first}
        self.torch.cuda.reset_peak_memory_stats()
        self.step()
        self.torch.cuda.synchronize()
        return {"first_loss": first, "peak_mb": self.torch.cuda.max_memory_allocated() / 1e6}

    def time(self, function, least=1.0):
        """Seconds of one call, over at least so many seconds of them."""
        for _ in range(2):  # which allocate memory again
            function()
        calls, began, took = 0, self.now(), 0.0
        while took < least:
            for _ in range(5 if self.cuda else 1):
                function()
                calls += 1
            took = self.now() - began
        if function == self.micro:
            self.step()  # drops the gradients
        return took / calls

    def now(self):
        if self.cuda:
            self.torch.cuda.synchronize()
        return time.perf_counter()

    def answer(self, command):
        if command["do"] == "warm":
            return self.warm(command["batch"])
        function, least = {"time": self.step, "micro": self.micro}[command["do"]], command.get("least", 1.0)
        if not command.get("attention"):
            return {"seconds": self.time(function, least)}
        from torch.nn.attention import SDPBackend, sdpa_kernel

        kernels = [getattr(SDPBackend, name) for name in command["attention"]]
        with sdpa_kernel(kernels, set_priority=True):
            return {"seconds": self.time(function, least)}


def main(args):
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what is no answer goes to stderr
    if not args.device.startswith("cuda"):
        from accept.runs import NO_COMPILER

        exec(NO_COMPILER, {})
    elif ":" in args.device:
        import torch

        torch.cuda.set_device(args.device)
        args.device = "cuda"
    from blockwise.training.machine import is_out_of_memory

    side = Side(args)
    say(answers, {"ready": True})
    for line in sys.stdin:
        try:
            answer = side.answer(json.loads(line))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            side.batch, answer = None, {"error": "out of memory"}
        if side.cuda:
            side.torch.cuda.empty_cache()
        say(answers, answer)


def say(answers, value):
    print(json.dumps(value), file=answers, flush=True)


if __name__ == "__main__":
    main(SimpleNamespace(**json.loads(sys.argv[1])))
