"""A study's runs: each is train.py in a process of its own, as many at a time as the machine has room for."""

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

from blockwise import print0
from blockwise.curves import curve, read_rows, spikes
from blockwise.files import InUse, remove, write_text
from blockwise.rundir import run_lock
from blockwise.settings import TrainConfig, by_hand
from blockwise.study.config import tokens_of

TRAIN = Path(__file__).resolve().parents[2] / "train.py"


def write_job(run):
    """The run's settings as a config file, from which it can be repeated by hand."""
    run.folder.mkdir(parents=True, exist_ok=True)
    default = {key: by_hand(value) for key, value in vars(TrainConfig()).items()}
    lines = [f"# python train.py {run.folder / 'job.py'}"]
    settings = {key: by_hand(value) for key, value in vars(run.config).items()}
    lines += [f"{key} = {value!r}" for key, value in settings.items() if value != default[key]]
    (run.folder / "job.py").write_text("\n".join(lines) + "\n")


def command(run, processes):
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    return [sys.executable, *launcher, str(TRAIN), str(run.folder / "job.py")]


def slots(config):
    """Environments of the runs that go side by side: each has its share of the GPUs or of the cores."""
    import torch

    if config.device.startswith("cuda:") or config.device == "mps":
        return [{}] * (config.jobs or 1)
    gpus = torch.cuda.device_count() if config.device in ("auto", "cuda") else 0
    if gpus:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")
        groups = [visible[i : i + config.processes] for i in range(0, gpus - config.processes + 1, config.processes)]
        config.check("processes", groups, f"at most the {gpus} GPUs")
        jobs = config.jobs or len(groups)
        return [{"CUDA_VISIBLE_DEVICES": ",".join(groups[i % len(groups)])} for i in range(jobs)]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    jobs = config.jobs or max(cores // config.processes, 1)
    threads = os.environ.get("OMP_NUM_THREADS", str(max(cores // (jobs * config.processes), 1)))
    return [{"OMP_NUM_THREADS": threads}] * jobs


def start(run, processes, slot):
    """train.py on the run's job file; what it prints goes to log.txt in the run's folder."""
    write_job(run)
    environment = {**os.environ, **slot, "LAUNCHED_BY": str(os.getpid())}  # the run ends by itself when we are killed
    with open(run.folder / "log.txt", "w") as log:
        args = command(run, processes)
        return subprocess.Popen(args, stdout=log, stderr=log, env=environment, start_new_session=True)


def is_locked(run):
    """Whether a process that an earlier call left behind is still training this run."""
    lock = run_lock(run.folder)
    try:
        lock.acquire()
        lock.release()
    except InUse:
        return True
    return False


def outcome(run, status, seconds):
    """The result of a run that ended with this exit status, by its metrics.jsonl."""
    try:
        rows = read_rows(run.folder)
    except (OSError, ValueError):
        rows = []
    last = rows[-1] if rows else {}
    val = curve(rows, "val/loss")
    result = {"status": "failed", "loss": None, "test": None, "curve": val, "seconds": seconds, "spikes": spikes(rows)}
    if last.get("step") == run.config.max_iters and "val/loss" in last:
        # a run that ends well above where it began has only blown up
        kept = math.isfinite(float(last["val/loss"])) and val[-1][1] <= val[0][1] + 0.1
        found = {"status": "finished", "loss": val[-1][1], "test": last.get("test/loss")}
        result |= found if kept else {"status": "diverged"}
    elif status and not all(math.isfinite(float(last.get(key, 0))) for key in ("train/loss", "grad_norm")):
        result["status"] = "diverged"
    return result


def run_all(study, stop):
    """Run what is needed until nothing is left. Ends early, with the runs saved, once `stop` is true."""
    processes, free = study.config.processes, slots(study.config)
    running = {}  # Run -> (process, its slot, when it started)
    done = [run for run in study.runs() if study.result(run)]
    for run in done:
        discard_weights(run)  # an earlier call may have been killed before it came to this
    speeds = [tokens_of(run.config) / study.result(run)["seconds"] for run in done if study.result(run)["seconds"]]
    side_by_side, waiting, todo = len(free), set(), study.todo()
    while (todo or running) and not stop:
        for run in todo:
            if not free or run in running:
                continue
            if is_locked(run):
                if run not in waiting:
                    print0(f"{run.label}: waiting for an earlier call's process, which still trains it")
                waiting.add(run)
                continue
            fresh, slot = not (run.folder / "metrics.jsonl").exists(), free.pop()
            running[run] = start(run, processes, slot), slot, time.monotonic() if fresh else None
        time.sleep(0.2)
        for run in [run for run, (process, _, _) in running.items() if process.poll() is not None]:
            process, slot, began = running.pop(run)
            free.append(slot)
            result = outcome(run, process.returncode, began and time.monotonic() - began)
            study.results[run.folder] = result
            if result["status"] != "failed":
                write_text(run.folder / "result.json", json.dumps(result))
                discard_weights(run)
                speeds += [tokens_of(run.config) / result["seconds"]] if began else []
            todo = study.todo()
            text = describe_outcome(run, result, process.returncode)
            print0(f"{run.label}: {text}; {progress_line(study, speeds, side_by_side)}")
    for process, _, _ in running.values():
        process.terminate()  # train.py saves and ends
    for process, _, _ in running.values():
        process.wait()


def discard_weights(run):
    """Delete the weights of a run that is done, unless all were to be kept."""
    if run.config.keep_checkpoints != -1:
        for path in [*run.folder.glob("ckpt_*.json"), *run.folder.glob("ckpt_*")]:
            remove(path)


def describe_outcome(run, result, status):
    """How a run ended: its loss and time, or the last line of its log. status: exit status of its process."""
    if result["status"] == "failed":
        lines = (run.folder / "log.txt").read_text(errors="replace").strip().splitlines()
        how = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
        return f"failed, {how}: {lines[-1] if lines else 'it printed nothing'} (see {run.folder / 'log.txt'})"
    loss = f"{result['loss']:.4f}" if result["status"] == "finished" else "diverged"
    return loss + (f" in {result['seconds']:.0f} s" if result["seconds"] else "")


def progress_line(study, speeds, side_by_side):
    """How many runs are done, and how long the rest will take if no grid grows any further."""
    runs, todo = study.runs(), study.todo()
    tokens = sum(tokens_of(run.config) for run in todo) + study.future_tokens()
    minutes = f"about {tokens / (median(speeds) * side_by_side) / 60:.0f} min left" if speeds else "time left unknown"
    return f"{len(runs) - len(todo)} of {len(runs)} known runs done, {minutes}"
