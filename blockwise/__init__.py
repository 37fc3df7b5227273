"""One learning rate per block type: block table, schedules, data, checkpoints. Importing this loads no torch."""

import os
import sys
from contextlib import contextmanager


class UserError(ValueError):
    """The user's mistake: an entry point prints it as one line and exits with this status."""

    status = 2


class NotFinite(UserError):
    """Training has blown up."""

    status = 3


@contextmanager
def exit_on_user_error():
    """Wrap an entry point: a mistake becomes one line on stderr (on rank 0) and its exit status; Ctrl-C one and 130.

    A mistake is a UserError, or a file that the system will not open, read or write.
    """
    try:
        yield
    except (UserError, OSError) as error:
        if isinstance(error, OSError) and error.filename is None:
            raise
        leave("error: " + " ".join(str(error).split()), getattr(error, "status", 2))
    except KeyboardInterrupt as stop:
        leave(str(stop) or "stopped", 130)


def leave(line, status):
    if os.environ.get("RANK", "0") == "0":
        print(line, file=sys.stderr)
    sys.exit(status)
