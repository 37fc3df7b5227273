"""Writing files: a lock on a folder, a write that is whole or did not happen, a sha256.

What a network or container file system may lack (locks, fsync, renaming over a file, free space) is done without, with
a warning where a promise depends on it.
"""

import errno
import fcntl
import hashlib
import os
import shutil
from contextlib import contextmanager, suppress
from pathlib import Path

from blockwise import UserError, warn

# Answers of a file system that lacks the call, unlike those of a broken or a full disk
UNSUPPORTED = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.ENODEV}


# What meta.json says of token ids, and what is assumed where there is none
DTYPES = {"uint16": "<u2", "uint32": "<u4"}
GPT2 = {"tokenizer": "gpt2", "vocab_size": 50257}


class InUse(UserError):
    """Another process has the folder."""


class FolderLock:
    """Exclusive right to write into a folder. The kernel takes it back when the process ends, however it ends.

    As a context manager it is held inside, else from `acquire` to `release`.
    """

    def __init__(
        self, folder, label=None, in_use="is in use by another process: wait, or choose another folder", name=".lock"
    ):
        """label, in_use: what the errors call the folder (None: its path), and what they say where it is taken.

        name: the file that is locked; locks of different names do not exclude each other.
        """
        self.folder, self.label, self.in_use, self.name = Path(folder), label or str(folder), in_use, name
        self.file = None

    def acquire(self):
        """Make the folder if need be. Raises InUse if another process has it, UserError if it cannot be written.

        Where the file system has no locks there is a warning instead of one.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.file = open(self.folder / self.name, "a+")  # noqa: SIM115
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InUse(f"{self.label} {self.in_use}") from None
        except OSError as error:
            if not self.file or error.errno not in UNSUPPORTED:
                raise UserError(f"{self.label} cannot be written: {cause(error)}") from None
            warn(f"{self.label} has no file locks ({error.strerror}): make sure that no other process writes there")

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
        sync(file.fileno())
        replace(temporary, path)
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


def sync(handle):
    """Put a file on the disk, as far as the file system can."""
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise


def sync_folder(folder):
    """Put a rename on the disk, as far as the file system can."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except PermissionError:  # a folder that one may write into and not list
        return
    try:
        sync(handle)
    finally:
        os.close(handle)


def replace(old, new):
    """Rename a file over another, by way of deleting that one where the file system cannot (SFTP)."""
    try:
        os.replace(old, new)
    except OSError as error:
        if error.errno not in UNSUPPORTED | {errno.EEXIST, errno.EPERM} or not os.path.isfile(new):
            raise
        os.remove(new)
        os.replace(old, new)


def free_space(folder):
    """Bytes that the file system says are free, None where it does not say (FUSE of object stores: 0 of 0)."""
    try:
        usage = shutil.disk_usage(folder)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        return None
    return usage.free if usage.total else None


def cause(error):
    """What an OSError is about, in a line: the path that the system refuses, where it names one, and why."""
    path = error.filename
    if path is None:
        return error.strerror
    if os.path.islink(path) and not os.path.exists(path):
        return f"{path} is a link to {os.readlink(path)}, which does not exist"
    if isinstance(error, FileExistsError | NotADirectoryError):
        part = next((part for part in (Path(path), *Path(path).parents) if part.exists() and not part.is_dir()), path)
        return f"{part} is not a folder"
    return f"{path}: {error.strerror}"


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()
