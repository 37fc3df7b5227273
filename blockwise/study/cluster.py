"""The runs of a study as tasks of a Ray cluster, which places them, and starts those of a lost node again elsewhere."""

import os
import signal
import time
from contextlib import suppress

from blockwise import UserError, warn
from blockwise.signals import STOPPING
from blockwise.study.runner import command, is_locked, launch

NODES_LOST = 10  # by one run, before it counts as failed


class RayEngine:
    """As many runs side by side as the nodes have GPUs or cores for. The nodes share the study's folders and Python."""

    def __init__(self, config):
        try:
            import ray
        except ImportError:
            raise UserError("engine=ray needs Ray: pip install -e '.[cluster]'") from None
        self.ray, self.processes, self.jobs = ray, config.processes, config.jobs
        handlers = {number: signal.getsignal(number) for number in STOPPING}
        try:
            ray.init(config.address, log_to_driver=False, logging_level="warning", include_dashboard=False)
        except Exception as error:  # that of a node of its own that does not start is of no narrower type
            raise UserError(f"address={config.address}: no Ray cluster answers there: {error}") from None
        for number, handler in handlers.items():
            signal.signal(number, handler)  # Ray ends the driver on SIGTERM; ours saves the runs first
        threads = int(os.environ.get("OMP_NUM_THREADS", "1"))
        cores = {"num_cpus": config.processes * threads}
        gpus = config.device in ("auto", "cuda") and ray.cluster_resources().get("GPU", 0) > 0
        needed = {"num_cpus": 0, "num_gpus": config.processes} if gpus else cores
        self.environment = {} if gpus else {"OMP_NUM_THREADS": str(threads)}
        self.task = ray.remote(max_retries=NODES_LOST, **needed)(train)
        kind, count = ("GPU", needed["num_gpus"]) if gpus else ("CPU", needed["num_cpus"])
        nodes = [int(node["Resources"].get(kind, 0) // count) for node in ray.nodes() if node["Alive"]]
        if not any(nodes):
            warn(f"no node has the {count} {kind}s of one run: runs wait until one joins")
        self.side_by_side = min(max(sum(nodes), 1), config.jobs or sum(nodes) or 1)
        self.running = {}  # reference of a task -> Run

    def has_room(self):
        """Without `jobs` every run is handed to Ray at once, which may then ask for more nodes."""
        return self.jobs is None or len(self.running) < self.jobs

    def start(self, run):
        args = command(run, self.processes)
        self.running[self.task.remote(str(run.folder), args, self.environment, os.getcwd())] = run

    def ended(self):
        """[(run, exit status, seconds or None)] of the runs that ended since the last call."""
        waiting = list(self.running)
        done, _ = self.ray.wait(waiting, num_returns=len(waiting), timeout=0) if waiting else ([], [])
        return [(self.running.pop(task), *self.outcome(task)) for task in done]

    def outcome(self, task):
        try:
            return self.ray.get(task)
        except self.ray.exceptions.RayError as error:
            warn(f"Ray gave a run up: {str(error).splitlines()[0]}")
            return 1, None

    def stop(self):
        """Ask every run to save and end, and wait for that."""
        for task in self.running:
            self.ray.cancel(task)  # a KeyboardInterrupt in `train`; one that waits for a node does not start
        for task in self.running:
            with suppress(self.ray.exceptions.RayError):
                self.ray.get(task)
        while any(is_locked(run.folder) for run in self.running.values()):
            time.sleep(0.2)
        self.ray.shutdown()


def train(folder, args, environment, cwd):
    """(exit status, seconds) of train.py on this task's node; seconds is None where it was resumed, as after a loss."""
    os.chdir(cwd)
    while is_locked(folder):  # by a process on a node that Ray holds for lost, which ends by itself
        time.sleep(1)
    began = None if os.path.exists(os.path.join(folder, "metrics.jsonl")) else time.monotonic()
    process = launch(folder, args, environment)
    try:
        while process.poll() is None:
            time.sleep(0.2)
    except KeyboardInterrupt:
        process.terminate()  # train.py saves and ends
        process.wait()
        raise
    return process.returncode, began and time.monotonic() - began
