"""The folder of a sharded checkpoint: written by all processes together, read by any of them, in whole or in part.

Tensors lie in the files of torch.distributed.checkpoint, one for each process that wrote. All else is in state.pt: the
tree of dicts and lists, where a tensor's place is taken by its name, {"tensor": "model/ln_f.weight"}.
"""

import pickle
import warnings
from contextlib import contextmanager
from functools import cached_property, partial

import torch
from torch.distributed import checkpoint as dcp  # takes half a second to load

from blockwise import UserError
from blockwise.files import atomic_write, remove, sha256

STATE, INDEX, NAME = "state.pt", ".metadata", "tensor"
# What the index of the tensor files, a pickle, consists of
IN_INDEX = {
    "torch": {"Size"},
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.distributed.checkpoint.metadata": {
        "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta", "TensorProperties",
        "TensorStorageMetadata", "_MEM_FORMAT_ENCODING",
    },
    "pathlib": {"Path", "PosixPath"},
    "pathlib._local": {"Path", "PosixPath"},
}  # fmt: skip


def write_shards(folder, state, world):
    """Write a tree of dicts and lists into a new folder, in the place of an old one; all processes call it together.

    state: plain data and tensors: DTensors, and others that are alike on all processes. world: distributed.World.
    Returns {file: {"bytes", "sha256"}} of all files.
    Raises OSError or UserError, on all processes alike, if one of them cannot write.
    """
    world.on_master(make_empty, folder)
    tensors = {}
    rest = without_tensors(state, tensors)
    try:
        with without_warnings():
            dcp.save(tensors, storage_writer=dcp.FileSystemWriter(folder))
    except dcp.CheckpointException as error:
        raise OSError(str(next(iter(error.failures.values()))[0])) from None
    files, problem = {}, None
    try:
        own = list(folder.glob(f"__{world.rank}_*"))
        if world.is_master:
            with atomic_write(folder / STATE) as file:
                torch.save(rest, file)
            own += [folder / STATE, folder / INDEX]
        files = {path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in own}
    except (OSError, RuntimeError) as error:  # torch reports a failed write as a RuntimeError
        problem = str(error)
    for others, their_problem in world.gather((files, problem)):
        if their_problem:
            raise OSError(their_problem)
        files |= others
    return dict(sorted(files.items()))


def make_empty(folder):
    remove(folder)
    folder.mkdir()


def without_tensors(tree, tensors, known=None, path=()):
    """The tree with names for its tensors, which are put into the dict `tensors`; a tied one has one name."""
    known = {} if known is None else known
    if isinstance(tree, torch.Tensor):
        local, name = tree.to_local() if hasattr(tree, "to_local") else tree, "/".join(map(str, path))
        if address := local.untyped_storage().data_ptr():  # none: no element of it is here
            name = known.setdefault((address, local.storage_offset(), tree.shape), name)
        tensors.setdefault(name, tree)
        return {NAME: name}
    if isinstance(tree, dict):
        return {key: without_tensors(value, tensors, known, (*path, key)) for key, value in tree.items()}
    if isinstance(tree, list):
        return [without_tensors(value, tensors, known, (*path, i)) for i, value in enumerate(tree)]
    return tree


def read_shards(folder, left=()):
    """The tree that was written, with tensors on the CPU.

    left: keys under which the tensors stay on the disk, each a Stored. Raises UserError for an index that holds more
    than an index of tensors does.
    """
    reader = Reader(folder)
    tree = torch.load(folder / STATE, map_location="cpu", weights_only=True)
    read = {}

    def tensor(name):
        if name not in read:
            read[name] = Stored(reader, name).read()
        return read[name]

    stored = partial(Stored, reader)
    return {key: with_tensors(value, stored if key in left else tensor) for key, value in tree.items()}


def with_tensors(tree, tensor):
    """The tree with tensor(name) in the place of each name."""
    if isinstance(tree, dict):
        if tree.keys() == {NAME}:
            return tensor(tree[NAME])
        return {key: with_tensors(value, tensor) for key, value in tree.items()}
    return [with_tensors(value, tensor) for value in tree] if isinstance(tree, list) else tree


class Stored:
    """A tensor on the disk, of which each process reads what it needs."""

    def __init__(self, reader, name):
        about = reader.index.state_dict_metadata[name]
        self.reader, self.name, self.shape, self.dtype = reader, name, about.size, about.properties.dtype

    def read(self):
        return self.read_into(torch.empty(self.shape, dtype=self.dtype))

    def read_into(self, tensor):
        """Fill a tensor of its shape, or of a DTensor what this process has of it; returns it. No process waits."""
        with without_warnings():
            dcp.load({self.name: tensor}, storage_reader=self.reader, no_dist=True)
        return tensor


class Reader(dcp.FileSystemReader):
    @cached_property
    def index(self):
        with open(self.path / INDEX, "rb") as file:
            return IndexUnpickler(file).load()

    def read_metadata(self, *args, **more):
        return self.index


class IndexUnpickler(pickle.Unpickler):
    """Runs no code but that of an index."""

    def find_class(self, module, name):
        dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if not dtype and name not in IN_INDEX.get(module, ()):
            raise UserError(f"the index of a checkpoint asks for {module}.{name}, which no index has: it is not used")
        return super().find_class(module, name)


@contextmanager
def without_warnings():
    """That one process is meant, we know; and torch 2.10 warns of its own use of storages."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        warnings.filterwarnings("ignore", "TypedStorage is deprecated")
        yield
