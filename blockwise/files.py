"""What every writer of files here needs: a lock on a folder, a write that is whole or did not happen, a sha256."""

import fcntl
import hashlib
import os
import shutil
from contextlib import contextmanager, suppress
from pathlib import Path

from blockwise import UserError


class InUse(UserError):
    """Another process has the folder."""


class FolderLock:
    """Exclusive right to write into a folder. The kernel takes it back when the process ends, however it ends.

    As a context manager it is held inside, else from `acquire` to `release`.
    """

    def __init__(self, folder, label=None, in_use="is in use by another process: wait, or choose another folder"):
        """label, in_use: what the errors call the folder (None: its path), and what they say where it is taken."""
        self.folder, self.label, self.in_use = Path(folder), label or str(folder), in_use
        self.file = None

    def acquire(self):
        """Makes the folder if need be. Raises InUse if another process has it, UserError if it cannot be written."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.file = open(self.folder / ".lock", "a+")  # noqa: SIM115
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InUse(f"{self.label} {self.in_use}") from None
        except OSError as error:
            raise UserError(f"{self.label} cannot be written: {error.strerror}") from None

    def release(self):
        self.file.close()

    def __enter__(self):
        self.acquire()
        return self

    def __exit__(self, kind, error, trace):
        self.release()


@contextmanager
def atomic_write(path):
    """Open `path` for writing bytes, under another name; at the end it is on the disk and renamed, or else gone."""
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    file = open(temporary, "wb")  # noqa: SIM115
    try:
        yield file
        file.flush()
        os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    finally:
        with suppress(OSError):
            file.close()
        with suppress(OSError):
            os.remove(temporary)


class HashingFile:
    """An open file that can only be written to from its start to its end, and knows the sha256 of what went into it."""

    def __init__(self, file):
        self.file, self.digest, self.bytes = file, hashlib.sha256(), 0

    def write(self, data):
        self.digest.update(data)
        self.bytes += len(data)
        return self.file.write(data)

    def flush(self):
        self.file.flush()

    @property
    def sha256(self):
        return self.digest.hexdigest()


def write_text(path, text):
    """Write a text file so that it is whole, on the disk, or what it was before."""
    with atomic_write(path) as file:
        file.write(text.encode())


def remove(path):
    """Delete a file, or a folder with all that is in it; what is not there is no error."""
    path = Path(path)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync_folder(folder):
    """Put a rename on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()
