"""Runs train.py and its like several times in one process, since loading torch takes longer than a short run.

    python bench/accept/driver.py JOBS.json

JOBS.json: {"before": Python to run first, "jobs": [{"script", "words", "folder"}]}. A job's folder gets stdout, stderr
and, once it has ended, result.json: its exit status, seconds, the GPUs that this process uses, the graphs that were
compiled, their breaks.
"""

import gc
import json
import os
import runpy
import sys
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)

from blockwise.signals import end_with_launcher


def main(path):
    end_with_launcher()
    work = json.loads(Path(path).read_text())
    os.chdir(ROOT)
    exec(work["before"], {})
    for job in work["jobs"]:
        folder = Path(job["folder"])
        for number, name in ((1, "stdout"), (2, "stderr")):
            with open(folder / name, "w") as stream:
                os.dup2(stream.fileno(), number)
        (folder / "result.json.tmp").write_text(json.dumps(run(job["script"], job["words"])))
        os.replace(folder / "result.json.tmp", folder / "result.json")


def run(script, words):
    """The result of a script, whose output goes where that of this process goes."""
    import torch
    from torch._dynamo.utils import counters

    counters.clear()
    began = time.monotonic()
    sys.argv, status = [script, *words], 0
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        status = end.code or 0
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    devices = sum(torch._C._cuda_hasPrimaryContext(number) for number in range(torch.cuda.device_count()))
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    compiled = {"graphs": counters["stats"]["unique_graphs"], "breaks": sum(counters["graph_break"].values())}
    return {"status": status, "seconds": time.monotonic() - began, "devices": devices, **compiled}


if __name__ == "__main__":
    main(sys.argv[1])
