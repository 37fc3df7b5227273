"""The folder of a run: one writer at a time, a new run never on top of an old one, config.json."""

import fcntl
import json
import os
import platform
import subprocess
import time
from pathlib import Path

from blockwise import UserError

# In the order in which they are moved: the manifests first, so that an interrupted move leaves nothing to resume
RUN_FILES = ("ckpt_*.json", "ckpt_*", "metrics.jsonl", "trace.json", "sharpness_*", "config.json")


class InUse(UserError):
    """Another process has the folder."""


class Lock:
    """Exclusive right to write into `out_dir`. The kernel takes it back when the process ends, however it ends."""

    def __init__(self, out_dir):
        self.out_dir = Path(out_dir)

    def acquire(self):
        """Raises InUse if another process has it, UserError if the folder cannot be made."""
        try:
            self.out_dir.mkdir(parents=True, exist_ok=True)
            self.file = open(self.out_dir / ".lock", "a+")  # noqa: SIM115
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InUse(f"out_dir={self.out_dir} is in use by another run: wait, or choose another") from None
        except OSError as error:
            raise UserError(f"out_dir={self.out_dir} cannot be written: {error.strerror}") from None


def set_aside(out_dir):
    """Move an old run's files to out_dir/old-TIME/; returns that folder, or None if there was nothing to move."""
    out_dir = Path(out_dir)
    files = dict.fromkeys(path for pattern in RUN_FILES for path in out_dir.glob(pattern))
    if not files:
        return None
    name = time.strftime("old-%Y%m%d-%H%M%S")
    taken = len(list(out_dir.glob(f"{name}*")))
    folder = out_dir / (f"{name}-{taken}" if taken else name)
    folder.mkdir()
    for path in files:
        os.replace(path, folder / path.name)
    return folder


def write_config(config, torch_version):
    """config.json: every key, resolved, and what it ran with."""
    about = {"python": platform.python_version(), "torch": torch_version, "commit": commit()}
    write_file(Path(config["out_dir"]) / "config.json", json.dumps({**config, **about}, indent=1) + "\n")


def write_file(path, text):
    """Write a file so that it is whole, on the disk, or what it was before."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def commit():
    """The project's commit, with "-dirty" if files differ from it; None outside a git checkout."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        answer = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None
