"""Where numbers go: metrics.jsonl always, the console, and Weights & Biases if wanted. Rank 0 alone has a logger."""

import json
import math
import os
import time
from contextlib import suppress
from pathlib import Path

from blockwise import first_line, warn
from blockwise.files import atomic_write, sync

RETRY_S = 10  # seconds until rows that could not be written are tried again


class MetricsFile:
    """One row a line, flushed when written, and no half row stays behind.

    On a full disk, or where the handle has gone stale (a restarted NFS server), rows wait in memory: nothing else does.
    """

    def __init__(self, path, start_step):
        """Keeps the rows before `start_step`; cuts those from it on, and a torn last line.

        A line in the middle that is no row is cut with a warning, and the rows behind it stay.
        """
        self.path = Path(path)
        rows, broken = [], 0
        lines = self.path.read_bytes().split(b"\n") if self.path.exists() else [b""]
        for line in lines[:-1]:
            try:
                if json.loads(line)["step"] < start_step:
                    rows.append(line + b"\n")
            except (ValueError, KeyError, TypeError):
                broken += 1
        if broken:
            warn(f"{self.path}: dropped {broken} broken lines, kept {len(rows)} rows")
        self.size = sum(map(len, rows))
        if b"".join(rows) != b"\n".join(lines)[: self.size]:
            with atomic_write(self.path) as file:
                file.write(b"".join(rows))
        self.path.touch()
        self.file = open(self.path, "r+b", buffering=0)  # noqa: SIM115
        self.file.truncate(self.size)
        self.waiting, self.failed_at = [], None

    def write(self, row):
        """row: {key: number}; NaN and infinities become strings, since JSON has none."""
        self.waiting.append(json.dumps({key: as_json(value) for key, value in row.items()}).encode() + b"\n")
        if self.failed_at is None or time.monotonic() > self.failed_at + RETRY_S:
            self.flush()

    def flush(self, to_disk=False):
        """Write waiting rows, with `to_disk` down to the disk itself; returns whether that worked."""
        try:
            if self.failed_at is not None:
                self.reopen()
            data = b"".join(self.waiting)
            self.file.seek(self.size)
            if self.file.write(data) < len(data):
                raise OSError("no space left")
            self.size += len(data)
            self.waiting = []
            if to_disk:
                sync(self.file.fileno())
        except OSError as error:
            with suppress(OSError):
                self.file.truncate(self.size)
            if self.failed_at is None:
                warn(f"{self.path} could not be written ({error}); its rows wait in memory, the run goes on")
            self.failed_at = time.monotonic()
            return False
        if self.failed_at is not None:
            warn(f"{self.path} can be written again")
            self.failed_at = None
        return True

    def reopen(self):
        """Open the file anew, made if it is gone: the handle may be what is broken."""
        with suppress(OSError):
            self.file.close()
        self.file = os.fdopen(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666), "r+b", buffering=0)
        self.size = min(self.size, os.fstat(self.file.fileno()).st_size)


def as_json(value):
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else str(value)
    return value


class Logger:
    """Rows of metrics to metrics.jsonl and, if wanted, Weights & Biases."""

    def __init__(self, config, start_step, wandb_id=None):
        """wandb_id: the id of the run to continue, from the checkpoint."""
        self.file = MetricsFile(Path(config["out_dir"]) / "metrics.jsonl", start_step)
        self.wandb = start_wandb(config, wandb_id) if config["wandb_log"] else None

    @property
    def wandb_id(self):
        return self.wandb.id if self.wandb else None

    def log(self, row):
        self.file.write(row)
        if self.wandb:
            try:
                self.wandb.log(row, step=row["step"])
            except Exception as error:
                warn(f"wandb failed ({type(error).__name__}: {first_line(error)}); continuing without it")
                self.wandb = None

    def flush(self):
        """Put every row on the disk, before a checkpoint supersedes them; returns whether that worked."""
        return self.file.flush(to_disk=True)

    def finish(self, exit_code=0):
        if not self.flush():
            warn(f"{self.file.path} lacks the last {len(self.file.waiting)} rows")
        if self.wandb:
            self.wandb.finish(exit_code=exit_code)


def start_wandb(config, run_id):
    try:
        import wandb

        return wandb.init(
            project=config["wandb_project"],
            name=config["wandb_run_name"],
            id=run_id,
            resume="allow",
            config=config,
            dir=os.environ.get("WANDB_DIR", config["out_dir"]),
        )
    except Exception as error:
        warn(f"wandb could not start ({type(error).__name__}: {first_line(error)}); continuing without it")
        return None


def console_line(row, max_iters, eta=None, skipped=0):
    """One aligned line of what a row holds. eta: seconds left, or None where it is not known yet."""
    step = row["step"]
    parts = [f"step {step:>{len(str(max_iters))}}/{max_iters} {100 * step / max(max_iters, 1):5.1f}%"]
    if "train/loss" in row:
        parts.append(f"loss {row['train/loss']:.4f}")
    if "val/loss" in row:
        parts.append(f"val {row['val/loss']:.4f}")
    if "train/loss" in row:
        parts += [
            f"lr {row['lr/Norm']:.1e}",
            f"norm {row['grad_norm']:.2f}",
            f"{row['step_ms']:.0f} ms",
            f"{row['tokens_per_s']:,.0f} tok/s",
            "mfu n/a" if row["mfu"] is None else f"mfu {100 * row['mfu']:.1f}%",
        ]
        if eta is not None:
            parts.append(f"eta {int(eta) // 3600}:{int(eta) // 60 % 60:02}:{int(eta) % 60:02}")
    if skipped:
        parts.append(f"{skipped} skipped")
    return " | ".join(parts)
