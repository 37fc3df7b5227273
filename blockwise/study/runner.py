"""A study's runs: each is train.py in a process of its own, as many at a time as the machine has room for."""

import json
import math
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from blockwise import print0
from blockwise.curves import curve, read_rows, spikes
from blockwise.files import FolderLock, InUse, remove, write_text
from blockwise.rundir import run_lock
from blockwise.study.config import config_file
from blockwise.study.results import changed, circumstances

TRAIN = Path(__file__).resolve().parents[2] / "train.py"


def write_job(run):
    """The run's settings as a config file, from which it can be repeated by hand."""
    path = run.folder / "job.py"
    path.write_text(config_file(changed(run.config), f"# python train.py {path}"))


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


def launch(folder, args, environment):
    """train.py as a process in a session of its own; what it prints goes to log.txt in the run's folder."""
    environment = {**os.environ, **environment, "LAUNCHED_BY": str(os.getpid())}  # it ends by itself when we are killed
    with open(Path(folder, "log.txt"), "w") as log:
        return subprocess.Popen(args, stdout=log, stderr=log, env=environment, start_new_session=True)


class LocalEngine:
    """Runs side by side on this machine, each with its share of the GPUs or of the cores."""

    def __init__(self, config):
        self.processes, self.free = config.processes, slots(config)
        self.side_by_side = len(self.free)
        self.running = {}  # Run -> (process, its slot, when it started; None: it was resumed)

    def has_room(self):
        return bool(self.free)

    def start(self, run):
        fresh, slot = not (run.folder / "metrics.jsonl").exists(), self.free.pop()
        process = launch(run.folder, command(run, self.processes), slot)
        self.running[run] = process, slot, time.monotonic() if fresh else None

    def ended(self):
        """[(run, exit status, seconds or None)] of the runs that ended since the last call."""
        done = []
        for run, (process, slot, began) in list(self.running.items()):
            if process.poll() is not None:
                del self.running[run]
                self.free.append(slot)
                done.append((run, process.returncode, began and time.monotonic() - began))
        return done

    def stop(self):
        """Ask every run to save and end, and wait for that."""
        for process, _, _ in self.running.values():
            process.terminate()
        for process, _, _ in self.running.values():
            process.wait()


def claim(run):
    """A lock that is held until the run's result is written; None where another study, or an orphan, trains it."""
    lock = FolderLock(run.folder, name=".study")
    with suppress(InUse):
        lock.acquire()
        if not is_locked(run.folder):
            return lock
        lock.release()
    return None


def is_locked(folder):
    """Whether a process is training the run of this folder."""
    with suppress(InUse), run_lock(folder):
        return False
    return True


def outcome(run, status, seconds):
    """The result of a run that ended with this exit status, by its metrics.jsonl and config.json.

    {"status": "finished" | "diverged" | "failed", "loss": by which rates are chosen, "test": which is reported (None
    without test_loss), "curve": [(step, loss)], "seconds": None for a run that was resumed, "spikes", ...}
    """
    try:
        rows = read_rows(run.folder)
    except (OSError, ValueError):
        rows = []
    last = rows[-1] if rows else {}
    val = curve(rows, "val/loss")
    result = {"status": "failed", "loss": None, "test": None, "curve": val, "seconds": seconds, "spikes": spikes(rows)}
    result |= circumstances(run.folder)
    if last.get("step") == run.config.max_iters and "val/loss" in last:
        # a run that ends well above where it began has diverged
        kept = math.isfinite(float(last["val/loss"])) and val[-1][1] <= val[0][1] + 0.1
        found = {"status": "finished", "loss": val[-1][1], "test": last.get("test/loss")}
        result |= found if kept else {"status": "diverged"}
    elif status and not all(math.isfinite(float(last.get(key, 0))) for key in ("train/loss", "grad_norm")):
        result["status"] = "diverged"
    return result


def engine_of(config):
    if config.engine == "local":
        return LocalEngine(config)
    from blockwise.study.cluster import RayEngine

    return RayEngine(config)


def run_all(study, stop):
    """Run what is needed until nothing is left. Ends early, with the runs saved, once `stop` is true."""
    engine = engine_of(study.config)
    for run in study.runs():
        if study.result(run):
            discard_weights(run)  # an earlier call may have been killed before it came to this
    claims, waiting = {}, set()  # {folder of a run of ours: its lock}; runs that others are making
    todo = write_down(study)
    while todo and not stop:
        for run in todo:
            if run.folder in claims or not engine.has_room() or study.result(run):
                continue
            if not (lock := claim(run)):
                if run not in waiting:
                    print0(f"{run.label}: waiting for another study, or an earlier call's process, which trains it")
                waiting.add(run)
            elif study.result(run):  # which another study finished just now
                lock.release()
            else:
                claims[run.folder] = lock
                write_job(run)
                engine.start(run)
        time.sleep(0.2)
        ended = engine.ended()
        for run, status, seconds in ended:
            result = study.results[run.folder.name] = outcome(run, status, seconds)
            if result["status"] != "failed":
                write_text(run.folder / "result.json", json.dumps(result))
                discard_weights(run)
            claims.pop(run.folder).release()
            print0(f"{run.label}: {describe_outcome(run, result, status)}; {progress(study, engine.side_by_side)}")
        if ended or any(study.result(run) for run in waiting):
            todo = write_down(study)
            waiting &= set(todo)
    engine.stop()


def write_down(study):
    """Put every run that is done into results.jsonl; returns those that are not."""
    for run in study.runs():
        if (result := study.result(run)) and result["status"] != "failed":
            study.file.add(run, result)
    return study.todo()


def discard_weights(run):
    """Delete the weights of a run that is done, unless all were to be kept."""
    if run.config.keep_checkpoints != -1:
        for path in [*run.folder.glob("ckpt_*.json"), *run.folder.glob("ckpt_*")]:
            remove(path)


def describe_outcome(run, result, status):
    """How a run ended: its loss and time, or its exit status and the last line of its log."""
    if result["status"] == "failed":
        lines = (run.folder / "log.txt").read_text(errors="replace").strip().splitlines()
        how = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
        return f"failed, {how}: {lines[-1] if lines else 'it printed nothing'} (see {run.folder / 'log.txt'})"
    loss = f"{result['loss']:.4f}" if result["status"] == "finished" else "diverged"
    return loss + (f" in {result['seconds']:.0f} s" if result["seconds"] else "")


def progress(study, side_by_side):
    """How many runs are done, and how long the rest will take if no grid grows any further."""
    runs, speed, left = len(study.runs()), study.speed(), "time left unknown"
    if speed:
        left = f"about {study.tokens_left() / (speed * side_by_side) / 60:.0f} min left"
    return f"{runs - len(study.todo())} of {runs} known runs done, {left}"
