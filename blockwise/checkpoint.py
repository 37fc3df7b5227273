"""Checkpoints: what they hold, and how they survive a kill in the middle of a save, a flipped bit, a full disk.

ckpt_00000500.pt is complete on the disk before ckpt_00000500.json, which states its length and sha256, is put beside
it: the .json commits the pair. A .pt without its .json is an interrupted save and counts for nothing while others are
committed; alone in its folder it is taken if it is whole, since somebody may have copied the weights only.

With checkpoint_format=sharded a folder, ckpt_00000500/, takes the place of the .pt, and the .json states length and
sha256 of each of its files. It has this name once it is complete, with a copy of the .json inside.

A checkpoint is one dict of plain data and tensors, which `load_checkpoint` completes for those of earlier versions:

    step, tokens, best_val_loss, skipped, skipped_in_a_row, wandb_id    progress
    model, model_config         state dict and architecture
    optimizer, scaler           their state dicts
    config                      every key of the run, resolved
    tokenizer, data             description of the tokenizer; identity of the data set
    layers, auto_mult, eigenvector, ema                                 one feature each; see its class in training/
"""

import fcntl
import json
import os
import re
import zipfile
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict
from pathlib import Path

import torch

from blockwise import UserError, first_line, warn
from blockwise.blocks import load_state
from blockwise.files import remove, sha256, sync_folder, write_text
from blockwise.settings import ARCHITECTURE, TRAINING_ONLY, TrainConfig
from blockwise.sharded_files import load_mapped, read_shards, shard_like, write_shards, write_tensors

VERSION = 2  # 1: checkpoints without a version
INNER_MANIFEST = "manifest.json"


class SaveError(Exception):
    """A checkpoint could not be written; the ones before it are as they were."""


def manifests(out_dir):
    """Paths of the committed checkpoints' manifests, oldest first."""
    return in_order(Path(out_dir).glob("ckpt_*.json"))


def checkpoint_files(out_dir):
    """Paths of everything in a folder that may be a checkpoint, or a part of one."""
    return in_order(p for p in Path(out_dir).glob("ckpt_*") if p.suffix in (".json", ".pt", ""))


def in_order(paths):
    """Those paths that are named like a checkpoint's, by step."""
    return sorted((p for p in paths if re.fullmatch(r"ckpt_\d{8,}", p.stem)), key=step_of)


def step_of(path):
    return int(path.stem.removeprefix("ckpt_"))


def stated_by(manifest):
    """What a manifest states, {} for one that is missing or damaged."""
    with suppress(OSError, ValueError):
        stated = json.loads(manifest.read_text())
        return stated if isinstance(stated, dict) else {}
    return {}


def data_of(manifest):
    """Path of what a manifest commits: a folder, or else a .pt file; a damaged manifest commits what is there."""
    folder, stated = manifest.with_suffix(""), stated_by(manifest)
    sharded = "files" in stated if stated else folder.is_dir()
    return folder if sharded else manifest.with_suffix(".pt")


def save_checkpoint(out_dir, state, val_loss, keep, keep_best=False, sharing=None):
    """Write `state` (plain data and tensors, with "step" and "config") as its step's checkpoint, then drop old ones.

    val_loss: validation loss at this step, or None. keep: number of newest checkpoints kept, -1: all; keep_best: also
    keep the one with the lowest validation loss. sharing: the distributed.World whose processes all call this together
    and each write a share of the tensors into a folder; None: this process writes one file. A step that is already
    committed is not written again; its manifest gets the validation loss if it lacked one.
    Raises SaveError, on all processes alike, if the disk of one is full or fails.
    """
    manifest = Path(out_dir) / f"ckpt_{state['step']:08d}.json"
    data, unfinished = manifest.with_suffix("" if sharing else ".pt"), manifest.with_suffix(".tmp")
    is_master, on_master = (sharing.is_master, sharing.on_master) if sharing else (True, lambda f, *args: f(*args))
    stated = {"step": state["step"], "val_loss": val_loss, "config": state["config"]}
    state = {"version": VERSION, **state}
    try:
        with nullcontext() if sharing else one_at_a_time(out_dir):
            if not on_master(committed_before, manifest, val_loss):
                if sharing:
                    files = write_shards(unfinished, state, sharing)
                    on_master(commit_folder, unfinished, manifest, stated | {"files": files})
                else:
                    write_manifest(manifest, stated | write_tensors(data, state))
    except (OSError, UserError) as error:
        for path in (unfinished, data) if is_master and not manifest.exists() else ():
            with suppress(OSError):
                remove(path)
        raise SaveError(f"{data} could not be written: {error}".split("\n")[0]) from None
    if is_master:
        prune(out_dir, keep, keep_best)


@contextmanager
def one_at_a_time(out_dir):
    """Inside, no other process of the run saves: after an error any rank may, while rank 0 is saving."""
    handle = os.open(out_dir, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def commit_folder(unfinished, manifest, stated):
    """Give a folder whose files are on the disk its name, and its manifest."""
    folder = manifest.with_suffix("")
    write_manifest(unfinished / INNER_MANIFEST, stated)
    remove(folder)  # of a save that was interrupted right here
    os.replace(unfinished, folder)
    sync_folder(folder.parent)
    write_manifest(manifest, stated)


def committed_before(manifest, val_loss):
    """Whether a step's checkpoint is there. If so, its manifest gets the validation loss if that is known now."""
    if not manifest.exists():
        return False
    if val_loss is not None:
        state_val_loss(manifest, val_loss)
    return True


def state_val_loss(manifest, val_loss):
    stated = stated_by(manifest)
    if stated.get("val_loss", val_loss) != val_loss:  # a damaged manifest stays as it is
        write_manifest(manifest, stated | {"val_loss": val_loss})


def write_manifest(path, stated):
    write_text(path, json.dumps(stated, indent=1) + "\n")


def prune(out_dir, keep, keep_best):
    if keep == -1:
        return
    committed = manifests(out_dir)
    to_keep = set(committed[-keep:])
    if keep_best:
        losses = {path: stated_by(path).get("val_loss") for path in committed}
        to_keep |= set(sorted((path for path in committed if losses[path] is not None), key=losses.get)[:1])
    for path in committed:
        if path not in to_keep:
            with suppress(OSError):  # the manifest first: without it the rest is no checkpoint
                data = data_of(path)
                path.unlink()
                if data.is_dir():  # half of a folder must not have its name
                    data = data.rename(data.with_suffix(".tmp"))
                remove(data)


def forget_val_losses(out_dir):
    """Make every committed checkpoint's validation loss unknown: it is of other text than what follows."""
    for manifest in manifests(out_dir):
        state_val_loss(manifest, None)


def newest_checkpoint(out_dir):
    """Path of the newest checkpoint whose bytes are what its manifest states, or None if there is none at all.

    Damaged ones are skipped with a warning each. Without any manifest, it is the newest .pt or folder that is complete.
    Raises UserError if all are damaged, or one cannot be read.
    """
    committed, files = manifests(out_dir), checkpoint_files(out_dir)
    if newest := next(valid(reversed(committed)), None):
        return newest
    otherwise = "--init_from=scratch starts a new run and keeps the files"
    if committed:
        raise UserError(f"every checkpoint in {out_dir} is damaged; {otherwise}")
    for data in reversed(files):
        if is_whole(data):
            warn(f"{data} has no manifest beside it ({data.stem}.json); it is complete, and is used")
            return data
    if files:
        raise UserError(f"{files[-1]} is incomplete and has no manifest; {otherwise}")
    return None


def is_whole(data):
    """Whether a checkpoint without its manifest is: the zip format of a .pt file has checksums of its own."""
    if data.is_dir():
        return problem_of(data, data / INNER_MANIFEST) is None
    with suppress(zipfile.BadZipFile, EOFError), zipfile.ZipFile(readable(data)) as archive:
        return archive.testzip() is None
    return False


def require_checkpoint(out_dir):
    """The same for a command that needs a run: raises UserError also if there is none."""
    if path := newest_checkpoint(out_dir):
        return path
    raise UserError(f"no checkpoint in out_dir={out_dir}: expected the out_dir of a run of train.py")


def valid_checkpoints(out_dir):
    """Paths of all checkpoints that are whole, oldest first; a warning for each that is not."""
    return list(valid(manifests(out_dir))) or [require_checkpoint(out_dir)]


def valid(committed):
    """Those checkpoints of these manifests whose bytes are what the manifest states."""
    for manifest in committed:
        data = data_of(manifest)
        if problem := problem_of(data, manifest):
            warn(f"checkpoint {data} is damaged ({problem}); skipped")
        else:
            yield data


def problem_of(data, manifest):
    """Why the bytes of a .pt file or a folder are not what a manifest states, None where they are."""
    try:
        stated = json.loads(readable(manifest).read_text())
        files = {data / name: of_file for name, of_file in stated.get("files", {}).items()} or {data: stated}
        for path, of_file in files.items():
            length = readable(path).stat().st_size
            if length != of_file["bytes"]:
                return f"{path.name} has {length} bytes instead of {of_file['bytes']}"
            if sha256(path) != of_file["sha256"]:
                return f"the sha256 of {path.name} is not the one in its manifest"
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        return first_line(error)
    return None


def readable(path):
    """path, which is there or not. Raises UserError for a file that may not be read: that says nothing of its bytes."""
    if path.exists() and not os.access(path, os.R_OK, effective_ids=os.access in os.supports_effective_ids):
        raise UserError(f"{path} cannot be read: permission denied; expected a file that this user may read")
    return path


def quarantine_after(out_dir, step):
    """Rename damaged checkpoints of later steps, so that the resumed run can write those steps again."""
    for manifest in manifests(out_dir):
        if step_of(manifest) > step:
            for path in (data_of(manifest), manifest):
                if path.exists():
                    damaged = path.with_name(path.name + ".damaged")
                    remove(damaged)
                    os.replace(path, damaged)


def remove_unfinished(out_dir):
    """Delete what a save that was killed has left behind."""
    for path in Path(out_dir).glob("ckpt_*.tmp"):
        remove(path)


def load_checkpoint(path, mapped=False, on_disk=()):
    """The dict that was saved, completed to what this version saves; tensors on the CPU.

    mapped: the weights, moments and averages in a .pt are pages of the file, read when they are used and shared by the
    processes of a machine; writing to them does not change the file, and the disk frees it after the last one is gone.
    on_disk: keys of a sharded checkpoint whose tensors are not read yet, as sharded_files.Stored.
    Only plain data and tensors are ever unpickled. Raises UserError for a file that is not a checkpoint of this
    project, and for an architecture with keys that this version does not know: it would compute something else.
    """
    try:
        if path.is_dir():
            saved = read_shards(path, on_disk)
        else:
            saved = load_mapped(path) if mapped else torch.load(path, map_location="cpu", weights_only=True)
            if mapped and saved.get("eigenvector"):  # a run holds it for longer than pruning leaves the file
                saved["eigenvector"] = {name: part.clone() for name, part in saved["eigenvector"].items()}
        architecture, config = saved["model_config"], saved["config"]
        if (version := saved.get("version", 1)) > VERSION:
            raise UserError(f"{path} is of version {version}, this project reads versions up to {VERSION}: update it")
        for key in architecture.keys() - {*ARCHITECTURE, *TRAINING_ONLY}:
            problem = f"{key}={architecture[key]!r}, which this version does not know"
            raise UserError(f"{path} has {problem}: update the project")
        later = {
            "skipped": 0, "skipped_in_a_row": 0, "wandb_id": None, "layers": [[0, architecture["n_layer"]]],
            "auto_mult": None, "eigenvector": None, "ema": None, "data": None,
        }  # fmt: skip
        defaults = asdict(TrainConfig())
        config = {key: {**defaults.get(key, {}), **v} if isinstance(v, dict) else v for key, v in config.items()}
        checkpoint = {**later, **saved, "config": {**defaults, **config}}
        for key in ("step", "tokens", "best_val_loss", "model", "optimizer", "scaler", "tokenizer"):
            checkpoint[key]
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not a checkpoint of this project: {type(error).__name__}: {error}") from None
    return checkpoint


def config_of(path):
    """The run's config, from the manifest beside a checkpoint, which is small, or else from the checkpoint itself."""
    return stated_by(path.with_suffix(".json")).get("config") or load_checkpoint(path)["config"]


def weights_of(checkpoint, ema=False):
    """The model's state dict. ema: the moving average instead; raises UserError if the run kept none."""
    if not ema:
        return finite(checkpoint["model"], checkpoint)
    if checkpoint["ema"] is None:
        raise UserError("ema=True: the checkpoint has no average of its weights; train with --ema_decay=0.999 for one")
    return finite({**checkpoint["model"], **checkpoint["ema"]["weights"]}, checkpoint)


def finite(weights, checkpoint):
    """The weights. Raises UserError where one is NaN or inf: nothing that is computed from them means anything."""
    for name, x in weights.items():
        if not x.isfinite().all():
            raise UserError(
                f"{name} of the checkpoint of step {checkpoint['step']} holds NaN or inf: the run has diverged; "
                "expected a checkpoint from before"
            )
    return weights


def load_optimizer(optimizer, state):
    """Load an optimizer's moments, divided as its parameters are; its groups keep the settings that the config made.

    state: its state dict in full, in memory or on the disk (sharded_files.Stored), by parameter number.
    `load_state_dict` alone would also restore the saved learning-rate multipliers and decay.
    """
    if "state" not in state:  # Muon with AdamW: a state dict for each of the two
        for part, part_state in state.items():
            load_optimizer(getattr(optimizer, part), part_state)
        return
    params = (p for group in optimizer.param_groups for p in group["params"])
    numbers = (number for group in state["param_groups"] for number in group["params"])
    param_of = dict(zip(numbers, params, strict=True))
    divided = {
        number: {name: shard_like(value, param_of[number]) for name, value in values.items()}
        for number, values in state["state"].items()
    }
    load_state(optimizer, state | {"state": divided})
