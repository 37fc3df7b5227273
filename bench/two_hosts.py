"""A run on two "hosts", network namespaces of this machine, of which one is killed and comes back. As root, on Linux:

    python bench/two_hosts.py

Each host runs the command of docs/training.md for several machines, with one process and gloo. A first run is left
alone. In a second one the host that does not hold the rendezvous loses all of its processes by SIGKILL and is started
again; in a third one, the host that holds it, after which both are started again. All must log the same losses. The
script prints what the launchers of the survivors said, and removes its namespaces.
"""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from blockwise import UserError, exit_on_user_error
from blockwise.data.writing import write_dataset
from blockwise.tokenizer import BYTES

HOSTS = {"blockwise-a": "10.77.0.1", "blockwise-b": "10.77.0.2"}
RENDEZVOUS, PORT = HOSTS["blockwise-a"], 29500
CABLE = "cable"
# Else a launcher that comes back asks the surviving one for an address that this tells in the first round only
SETTINGS = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
KEYS = (
    "--dataset=tiny --device=cpu --n_layer=2 --n_head=2 --n_embd=16 --block_size=16 --batch_size=2 --eval_iters=2 "
    "--gradient_accumulation_steps=2 --eval_interval=20 --max_iters=200 --lr_decay_iters=200 --warmup_iters=2 "
    "--learning_rate=1e-3 --dropout=0.1 --init_from=auto"
)


def main():
    if os.geteuid():
        raise UserError("network namespaces need root: expected sudo")
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        text = b"the cat sat on a mat and the dog ate that hat " * 400
        write_dataset(folder / "tiny", {"train": list(text[:17000]), "val": list(text[17000:])}, BYTES, "made up")
        try:
            connect()
            first, second = HOSTS
            straight = Run(folder, "straight")
            straight.start(first, second)
            straight.wait()
            for lost, name in ((second, "without the rendezvous"), (first, "with the rendezvous")):
                run = Run(folder, name.replace(" ", "_"))
                run.start(first, second)
                run.lose(lost)
                run.wait()
                equal = run.losses() == straight.losses()
                print(f"host {name} killed and started again: losses {'equal' if equal else 'DIFFER'}", flush=True)
        finally:
            disconnect()


class Run:
    def __init__(self, folder, name):
        self.folder, self.out_dir = folder, folder / name
        self.processes, self.logs = {}, {}

    def start(self, *hosts):
        for host in hosts:
            here = HOSTS[host]
            launcher = "-m torch.distributed.run --nnodes=2 --nproc_per_node=1 --max-restarts=3 --rdzv_backend=c10d"
            launcher += f" --rdzv_id={self.out_dir.name} --rdzv_endpoint={RENDEZVOUS}:{PORT} --local_addr={here}"
            launcher += f" --rdzv_conf=is_host={here == RENDEZVOUS}"  # both have this machine's name, and so no other
            keys = f"{KEYS} --data_dir={self.folder} --out_dir={self.out_dir}"
            command = ["ip", "netns", "exec", host, sys.executable, *shlex.split(f"{launcher} train.py {keys}")]
            number = len(self.logs)
            self.logs[host] = self.folder / f"{self.out_dir.name}-{host}-{number}.log"
            environment = {**os.environ, "GLOO_SOCKET_IFNAME": CABLE, "OMP_NUM_THREADS": "1", **SETTINGS}
            with open(self.logs[host], "w") as log:
                self.processes[host] = subprocess.Popen(
                    command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True
                )
        print(f"{self.out_dir.name}: started {' and '.join(hosts)}", flush=True)

    def lose(self, host):
        """Kill a host's processes after a checkpoint; start it again, and the other one too if that has ended."""
        until(lambda: list(self.out_dir.glob("ckpt_*.json")), "no checkpoint came")
        (other,) = set(HOSTS) - {host}
        killed = time.monotonic()
        for pid in pids_of(host):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.processes[host].wait()
        time.sleep(30)  # for the survivor to notice, and for the rendezvous to strike off who is gone
        left = self.processes[other].poll() is None
        print(f"{time.monotonic() - killed:.0f} s later {other} {'waits' if left else 'has ended'}; it said:")
        said = [line.rstrip() for line in self.logs[other].read_text().splitlines()]
        telling = re.compile(r"^warning|^(\[rank\d\]: )?[\w.]+Error:")
        print("\n".join(f"    {line[:200]}" for line in said if telling.match(line)))
        self.start(*([host] if left else HOSTS))

    def wait(self):
        until(lambda: all(process.poll() is not None for process in self.processes.values()), "the run did not end")
        for host, process in self.processes.items():
            if process.returncode:
                print("\n".join(log.read_text()[-3000:] for log in self.logs.values()))
                raise UserError(f"{host} ended with status {process.returncode}")

    def losses(self):
        rows = map(json.loads, (self.out_dir / "metrics.jsonl").read_text().splitlines())
        return [(row["step"], row.get("train/loss"), row.get("val/loss")) for row in rows]


def until(condition, problem, timeout=1800):
    end = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > end:
            raise UserError(problem)
        time.sleep(0.2)


def connect():
    disconnect()
    for host in HOSTS:
        ip(f"netns add {host}")
    first, second = HOSTS
    ip(f"link add {CABLE} netns {first} type veth peer name {CABLE} netns {second}")
    for host, address in HOSTS.items():
        ip(f"-n {host} address add {address}/24 dev {CABLE}")
        for device in ("lo", CABLE):
            ip(f"-n {host} link set {device} up")


def disconnect():
    there = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout.split()
    for host in set(HOSTS) & set(there):
        for pid in pids_of(host):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        ip(f"netns delete {host}")


def pids_of(host):
    found = subprocess.run(["ip", "netns", "pids", host], capture_output=True, text=True)
    return [int(pid) for pid in found.stdout.split()]


def ip(words):
    subprocess.run(["ip", *words.split()], check=True)


if __name__ == "__main__":
    with exit_on_user_error():
        main()
