"""The folder of a run: one writer at a time, a new run never on top of an old one, config.json."""

import json
import os
import platform
import subprocess
import time
from pathlib import Path

from blockwise.files import FolderLock, write_text

# In the order in which they are moved: the manifests first, so that an interrupted move leaves nothing to resume
RUN_FILES = (
    "ckpt_*.json", "ckpt_*", "metrics.jsonl", "trace.json", "sharpness_*", "spectrum*", "curvature*",
    "frequency_*", "config.json",
)  # fmt: skip


def run_lock(out_dir):
    """The lock of a run's folder, not yet acquired."""
    return FolderLock(out_dir, f"out_dir={out_dir}", "is in use by another run: wait, or choose another")


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


def write_config(config, torch_version, machine):
    """config.json: every key, resolved, and what it ran with."""
    about = {"python": platform.python_version(), "torch": torch_version, "commit": commit(), "machine": machine}
    write_text(Path(config["out_dir"]) / "config.json", json.dumps({**config, **about}, indent=1) + "\n")


def commit():
    """The project's commit, with "-dirty" if files differ from it; None outside a git checkout."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        answer = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None
