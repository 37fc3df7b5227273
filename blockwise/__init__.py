"""One learning rate per block type: block table, schedules, data, checkpoints. Importing this loads no torch."""

import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from typing import NoReturn, TextIO

__version__ = "0.2.0"


class UserError(ValueError):
    """The user's mistake: an entry point prints it as one line and exits with this status."""

    status = 2
    every_rank = False  # whether each process prints it, or rank 0 alone


class LauncherError(UserError):
    """The launcher's environment says nothing sensible, so that nobody knows which process is rank 0."""

    every_rank = True


class NotFinite(UserError):
    """Training has blown up."""

    status = 3


def print0(text: object) -> None:
    """Print on rank 0. What cannot be printed, on a full disk or into a closed pipe, is no reason to stop a run."""
    if on_rank_0():
        write_line(text, sys.stdout)


def warn(text: object) -> None:
    write_line(f"warning: {text}", sys.stderr)


def first_line(error: object) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), "no reason given")


def on_rank_0() -> bool:
    return os.environ.get("RANK", "0") == "0"


def write_line(text: object, stream: TextIO) -> None:
    """Write and flush one line; a line that cannot be written is dropped."""
    try:
        print(text, file=stream, flush=True)
    except (OSError, ValueError):  # ValueError: a closed stream, a character that its encoding lacks
        with suppress(OSError, ValueError):
            drop_buffer(stream)


def drop_buffer(stream: TextIO) -> None:
    """Empty a stream's buffer into nothing: Python would try to write it again, and fail again when it ends."""
    target = stream.fileno()
    kept, nothing = os.dup(target), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, target)
        stream.flush()
    finally:
        os.dup2(kept, target)
        os.close(kept)
        os.close(nothing)


def nobody_reads(stream: TextIO) -> bool:
    """Whether a stream is a pipe whose reader has closed it."""
    poll = select.poll()
    poll.register(stream.fileno(), 0)
    return bool(poll.poll(0))


@contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Wrap an entry point: a mistake becomes one line on stderr (on rank 0) and its exit status; Ctrl-C one and 130.

    A mistake is a UserError, or a file that the system will not open, read or write. A character that the console's
    encoding lacks is printed as an escape, and a reader of stdout that has had enough ends the command quietly.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # a full disk, a closed stream
            if isinstance(stream, TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
    try:
        yield
        sys.stdout.flush()
    except (UserError, OSError) as error:
        if isinstance(error, OSError) and error.filename is None:
            if isinstance(error, BrokenPipeError) and nobody_reads(sys.stdout):
                drop_buffer(sys.stdout)
                sys.exit(0)
            raise
        every_rank = getattr(error, "every_rank", False)
        leave("error: " + " ".join(str(error).split()), getattr(error, "status", 2), every_rank)
    except KeyboardInterrupt as stop:
        leave(str(stop) or "stopped", 130)


def leave(line: str, status: int, every_rank: bool = False) -> NoReturn:
    if every_rank or on_rank_0():
        write_line(line, sys.stderr)
    sys.exit(status)
