"""A run on two "hosts", network namespaces of this machine, of which one is killed and comes back. As root, on Linux:

    python bench/two_hosts.py

Each host runs the command of docs/machines.md for several machines, with one process and gloo. A first run is left
alone. In a second one the host that does not hold the rendezvous loses all of its processes by SIGKILL and is started
again; in a third one, the host that holds it, after which both are started again. All must log the same losses. The
script prints what the launchers of the survivors said. However it ends, but for SIGKILL, its processes end and its
namespaces, whose names hold its process id, are removed.
"""

import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from harness import ROOT, write_text

from blockwise import UserError, exit_on_user_error
from blockwise.curves import read_rows
from blockwise.keys import Keys, Range
from configurator import configure

ADDRESSES = ("10.77.0.1", "10.77.0.2")  # of the hosts; the first one holds the rendezvous
PORT, CABLE = 29500, "cable"
# Else a launcher that comes back asks the surviving one for an address that this tells in the first round only
SETTINGS = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", "GLOO_SOCKET_IFNAME": CABLE, "OMP_NUM_THREADS": "1"}
KEYS = (
    "--dataset=made_up --device=cpu --n_layer=2 --n_head=2 --n_embd=16 --block_size=16 --batch_size=2 --eval_iters=2 "
    "--gradient_accumulation_steps=2 --eval_interval=20 --warmup_iters=2 --learning_rate=1e-3 --dropout=0.1 "
    "--init_from=auto"
)


@dataclass
class TwoHostsConfig(Keys):
    """The keys of two_hosts.py."""

    steps: Annotated[int, "length of each run", Range(21)] = 200
    pause: Annotated[
        int, "seconds for the survivor to notice, and for the rendezvous to strike off who is gone", Range(0)
    ] = 30


class Hosts:
    """Two network namespaces with a cable between them, for as long as the context lasts."""

    def __enter__(self):
        self.names = [f"blockwise-{os.getpid()}-{letter}" for letter in "ab"]
        self.made, self.processes = [], []
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, lambda number, frame: sys.exit(128 + number))
        try:
            for name in self.names:
                ip(f"netns add {name}")
                self.made.append(name)
            ip(f"link add {CABLE} netns {self.names[0]} type veth peer name {CABLE} netns {self.names[1]}")
            for name, address in zip(self.names, ADDRESSES, strict=True):
                ip(f"-n {name} address add {address}/24 dev {CABLE}")
                for device in ("lo", CABLE):
                    ip(f"-n {name} link set {device} up")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error):
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)  # nothing is to be left behind
        for process in self.processes:  # also one that has not yet entered its namespace
            process.kill()
            process.wait()
        for host, name in enumerate(self.made):
            self.kill(host)
            ip(f"netns delete {name}")

    def start(self, host, command, log):
        """A command on a host, as a Popen."""
        command = ["ip", "netns", "exec", self.names[host], *command]
        with open(log, "w") as file:
            process = subprocess.Popen(
                command, cwd=ROOT, env={**os.environ, **SETTINGS}, stdout=file, stderr=file, start_new_session=True
            )
        self.processes.append(process)
        return process

    def kill(self, host):
        """SIGKILL for all processes of a host, until it has none: launchers start new ones."""
        while pids := ip(f"netns pids {self.names[host]}").split():
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            time.sleep(0.02)


class Run:
    """A run of train.py on both hosts."""

    def __init__(self, hosts, folder, name, steps):
        self.hosts, self.folder, self.out_dir, self.steps = hosts, folder, folder / name, steps
        self.processes, self.logs = {}, {}

    def start(self, *numbers):
        for host in numbers:
            launcher = "-m torch.distributed.run --nnodes=2 --nproc_per_node=1 --max-restarts=3 --rdzv_backend=c10d"
            launcher += f" --rdzv_id={self.out_dir.name} --rdzv_endpoint={ADDRESSES[0]}:{PORT}"
            # both have this machine's name, and so no other way to tell who holds it
            launcher += f" --local_addr={ADDRESSES[host]} --rdzv_conf=is_host={host == 0}"
            keys = f"{KEYS} --max_iters={self.steps} --lr_decay_iters={self.steps}"
            words = shlex.split(f"{launcher} train.py {keys} --data_dir={self.folder} --out_dir={self.out_dir}")
            self.logs[host] = self.folder / f"{self.out_dir.name}-{host}-{time.monotonic_ns()}.log"
            self.processes[host] = self.hosts.start(host, [sys.executable, *words], self.logs[host])
        print(f"{self.out_dir.name}: started {' and '.join(self.hosts.names[host] for host in numbers)}", flush=True)

    def lose(self, host, pause):
        """Kill a host's processes after a checkpoint; start it again, and the other one too if that has ended."""
        until(lambda: list(self.out_dir.glob("ckpt_*.json")), "no checkpoint came")
        other, killed = 1 - host, time.monotonic()
        self.hosts.kill(host)
        self.processes[host].wait()
        time.sleep(pause)
        waits = self.processes[other].poll() is None
        seconds, what = time.monotonic() - killed, "waits" if waits else "has ended"
        print(f"{seconds:.0f} s later {self.hosts.names[other]} {what}; it said:")
        for line in self.logs[other].read_text().splitlines():
            if re.match(r"^warning|^(\[rank\d\]: )?[\w.]+Error:", line):
                print(f"    {line.rstrip()[:200]}")
        self.start(*([host] if waits else (0, 1)))

    def losses(self):
        """Those of all rows, once the run has ended."""
        until(lambda: all(process.poll() is not None for process in self.processes.values()), "the run did not end")
        for host, process in self.processes.items():
            if process.returncode:
                print("\n".join(log.read_text()[-3000:] for log in self.logs.values()))
                raise UserError(f"{self.hosts.names[host]} ended with status {process.returncode}")
        return [(row["step"], row.get("train/loss"), row.get("val/loss")) for row in read_rows(self.out_dir)]


def until(condition, problem, timeout=1800):
    end = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > end:
            raise UserError(problem)
        time.sleep(0.2)


def ip(words):
    """What the command ip answers. Raises UserError where it fails."""
    done = subprocess.run(["ip", *words.split()], capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"ip {words}: {done.stderr.strip()}")
    return done.stdout


def main(argv):
    config, _, _ = configure(TwoHostsConfig, argv, __doc__)
    if os.geteuid():
        raise UserError("network namespaces need root: expected sudo")
    with tempfile.TemporaryDirectory() as folder, Hosts() as hosts:
        folder = Path(folder)
        write_text(folder)
        straight = Run(hosts, folder, "straight", config.steps)
        straight.start(0, 1)
        expected, different = straight.losses(), 0
        for host, name in ((1, "without the rendezvous"), (0, "with the rendezvous")):
            run = Run(hosts, folder, name.replace(" ", "_"), config.steps)
            run.start(0, 1)
            run.lose(host, config.pause)
            equal = run.losses() == expected
            different += not equal
            print(f"host {name} killed and started again: losses {'equal' if equal else 'DIFFER'}", flush=True)
    return int(different > 0)


if __name__ == "__main__":
    with exit_on_user_error():
        sys.exit(main(sys.argv[1:]))
