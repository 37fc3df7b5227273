"""One learning rate per block type: block table, schedules, data, checkpoints. Importing this loads no torch."""

import os
import sys
from contextlib import contextmanager


class UserError(ValueError):
    """The user's mistake: an entry point prints it as one line and exits with status 2."""


@contextmanager
def exit_on_user_error():
    """Wrap an entry point: a UserError becomes one line on stderr (on rank 0) and exit status 2."""
    try:
        yield
    except UserError as error:
        if os.environ.get("RANK", "0") == "0":
            print("error:", " ".join(str(error).split()), file=sys.stderr)
        sys.exit(2)
