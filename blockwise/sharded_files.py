"""The folder of a sharded checkpoint: each process writes its rows of every tensor; any number of processes read it.

shard_00000.pt, one per process: {tensor name: (first row, rows from there on)}. state.pt: the checkpoint's dicts and
lists with {"tensor": name} in place of each tensor. Both load with `torch.load(..., weights_only=True)`.
"""

import io
import pickle
from functools import cache

import torch
from torch.utils.serialization import config as serialization

from blockwise import UserError, first_line
from blockwise.files import HashingFile, atomic_write, remove

STATE, SHARD, NAME = "state.pt", "shard_{:05d}.pt", "tensor"
EARLIER_INDEX = ".metadata"  # in folders that torch.distributed.checkpoint wrote


def write_shards(folder, state, world):
    """Write a tree of dicts and lists into a new folder, replacing an old one; all processes call it together.

    state: plain data and tensors: DTensors divided by rows, and others that are equal on all processes.
    world: distributed.World. Returns {file name: {"sha256", "bytes"}} of all files.
    Raises OSError or UserError, on all processes alike, if one of them cannot write.
    """
    world.on_master(make_empty, folder)
    tensors, files, problem = {}, {}, None
    tree = take_tensors(state, tensors)
    try:
        contents = {SHARD.format(world.rank): {name: share_of(tensor, world) for name, tensor in tensors.items()}}
        if world.is_master:
            contents[STATE] = tree
        files = {name: write_tensors(folder / name, content) for name, content in contents.items()}
    except (OSError, RuntimeError) as error:  # the peers wait below
        problem = str(error)
    for peer_files, peer_problem in world.gather((files, problem)):
        if peer_problem:
            raise OSError(peer_problem)
        files |= peer_files
    return dict(sorted(files.items()))


def make_empty(folder):
    remove(folder)
    folder.mkdir()


def write_tensors(path, content):
    """torch.save into a file that is on the disk in full, or not there at all. Returns its {"sha256", "bytes"}.

    Raises OSError if it cannot be written.
    """
    try:
        with atomic_write(path) as file, serialization.patch({"save.use_pinned_memory_for_d2h": True}):
            hashed = HashingFile(file)
            torch.save(content, hashed)
    except RuntimeError as error:  # torch reports a failed write as one
        raise OSError(first_line(error)) from None
    return {"sha256": hashed.sha256, "bytes": hashed.bytes}


def row_range(rows, rank, size):
    """(first, last) of the rows that one of `size` processes holds, as torch.chunk and FSDP divide them."""
    chunk = -(-rows // size)
    return min(rank * chunk, rows), min((rank + 1) * chunk, rows)


def share_of(tensor, world):
    """(first row, rows) of a tensor that this process writes. A view is copied, or all that it views would be saved."""
    first, last = row_range(len(tensor), world.rank, world.size)
    rows = tensor.to_local() if hasattr(tensor, "to_local") else tensor[first:last]
    rows = rows.detach().cpu()
    return first, rows.clone() if rows.untyped_storage().nbytes() > rows.nbytes else rows


def take_tensors(tree, tensors, names=None, path=()):
    """The tree with {"tensor": name} in place of its tensors, which go into the dict `tensors`.

    A tied tensor has one name. Numbers in tensors of no dimension stay in the tree.
    """
    names = {} if names is None else names
    if isinstance(tree, torch.Tensor) and tree.ndim:
        local, name = tree.to_local() if hasattr(tree, "to_local") else tree, "/".join(map(str, path))
        if address := local.untyped_storage().data_ptr():  # 0 where this process holds none of its rows
            name = names.setdefault((address, local.storage_offset(), tree.shape), name)
        tensors.setdefault(name, tree)
        return {NAME: name}
    if isinstance(tree, dict):
        return {key: take_tensors(value, tensors, names, (*path, key)) for key, value in tree.items()}
    if isinstance(tree, list):
        return [take_tensors(value, tensors, names, (*path, i)) for i, value in enumerate(tree)]
    return tree


def put_tensors(tree, tensor):
    """A new tree with tensor(name) in place of each {"tensor": name}; numbers in tensors are copied."""
    if isinstance(tree, dict):
        if tree.keys() == {NAME}:
            return tensor(tree[NAME])
        return {key: put_tensors(value, tensor) for key, value in tree.items()}
    if isinstance(tree, list):
        return [put_tensors(value, tensor) for value in tree]
    return in_full(tree)


def read_shards(folder, on_disk=()):
    """The tree that was written, with tensors on the CPU.

    on_disk: keys whose tensors are not read but given as Stored. Raises UserError for a folder of an earlier version
    whose index refers to what no index of tensors does.
    """
    tree, pieces = torch.load(folder / STATE, map_location="cpu", weights_only=True), {}
    for name, first, rows in (earlier_pieces if (folder / EARLIER_INDEX).exists() else pieces_in)(folder):
        pieces.setdefault(name, {})[first] = rows
    stored = {name: Stored(rows_at) if rows_at[0].ndim else rows_at[0] for name, rows_at in pieces.items()}
    read = cache(lambda name: in_full(stored[name]))  # once, where it is tied
    return {key: put_tensors(value, stored.get if key in on_disk else read) for key, value in tree.items()}


def pieces_in(folder):
    """(tensor name, first row, rows) of everything in a folder's shards, whose pages are not read yet."""
    for path in folder.glob("shard_*.pt"):
        for name, (first, rows) in load_mapped(path).items():
            if len(rows):
                yield name, first, rows


def load_mapped(path):
    """What torch.save wrote, its tensors pages of the file; read into memory where the file system cannot map files."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        if "mmap" not in str(error):
            raise
        return torch.load(path, map_location="cpu", weights_only=True)


class Stored:
    """A tensor on the disk: stored[first:last] reads these rows into a new tensor, stored[:] all."""

    def __init__(self, rows_at):
        """rows_at: {first row: rows from there on, as pages of a file}."""
        self.rows_at = dict(sorted(rows_at.items()))
        self.shape = torch.Size([sum(map(len, rows_at.values())), *rows_at[0].shape[1:]])

    def __getitem__(self, rows):
        first, last, _ = rows.indices(self.shape[0])
        return torch.cat([rows[max(first - at, 0) : max(last - at, 0)] for at, rows in self.rows_at.items()])


def in_full(value):
    """A Stored tensor read, a number in a tensor copied, everything else as it is: nothing small maps a file."""
    if isinstance(value, Stored):
        return value[:]
    return value.clone() if isinstance(value, torch.Tensor) and not value.ndim else value


def shard_like(value, p):
    """A tensor of the parameter's shape, in memory or Stored, divided as the parameter is; everything else in full.

    Of a Stored tensor a process reads only the rows that it keeps.
    """
    if not hasattr(p, "to_local") or getattr(value, "shape", None) != p.shape:
        return in_full(value)
    from torch.distributed.tensor import DTensor  # slow to load

    first, last = row_range(len(p), p.device_mesh.get_local_rank(), p.device_mesh.size())
    local = value[first:last].to(p.device, copy=True)
    return DTensor.from_local(local, p.device_mesh, p.placements, run_check=False, shape=p.shape, stride=p.stride())


# ---------------------------------------------------------------------------------------------------------------------
# Folders of earlier versions: the tensors are in files of torch.distributed.checkpoint, whose index is a pickle


class Attributes:
    """Stands for any class of torch's in a pickle: a name of torch's own may change, and none of its code is run."""

    def __init__(self, *args):
        pass

    def __setstate__(self, state):
        self.__dict__.update(state if isinstance(state, dict) else {})


class EarlierIndex(pickle.Unpickler):
    def find_class(self, module, name):
        if module.split(".")[0] not in ("torch", "pathlib"):
            raise UserError(f"the index of a checkpoint refers to {module}.{name}, which an index never does: refused")
        return torch.Size if name == "Size" else Attributes


def earlier_pieces(folder):
    """(tensor name, first row, rows) of everything in a folder of an earlier version."""
    with open(folder / EARLIER_INDEX, "rb") as file:
        index = EarlierIndex(file).load()
    for place, data in index.storage_data.items():
        with open(folder / data.relative_path, "rb") as file:
            file.seek(data.offset)
            content = io.BytesIO(file.read(data.length))
        rows = torch.load(content, map_location="cpu", weights_only=True)
        yield place.fqn, place.offset[0] if place.offset else 0, rows
