"""Checkpoints that survive what happens to them: a kill in the middle of a save, a flipped bit, a full disk.

ckpt_00000500.pt is complete on the disk before ckpt_00000500.json, which states its length and sha256, is put beside
it: the .json commits the pair. A file without its .json is an interrupted save and counts for nothing.
"""

import json
import os
import re
from contextlib import suppress
from pathlib import Path

import torch

from blockwise import UserError
from blockwise.files import atomic_write, sha256


class SaveError(Exception):
    """A checkpoint could not be written; the ones before it are as they were."""


def manifests(out_dir):
    """Paths of the committed checkpoints' manifests, oldest first."""
    found = (p for p in Path(out_dir).glob("ckpt_*.json") if re.fullmatch(r"ckpt_\d{8,}\.json", p.name))
    return sorted(found, key=step_of)


def step_of(path):
    return int(path.stem.removeprefix("ckpt_"))


def save_checkpoint(out_dir, state, val_loss, keep, keep_best=False):
    """Write `state` (plain data and tensors, with "step" and "config") as its step's checkpoint, then drop old ones.

    val_loss: of the evaluation at this step, or None. keep: how many of the newest stay, -1 all; keep_best: the one
    with the lowest validation loss stays besides. A step that is already committed is not written again; its manifest
    gets the validation loss, if that was not known.
    Raises SaveError if the disk is full or fails.
    """
    manifest = Path(out_dir) / f"ckpt_{state['step']:08d}.json"
    weights = manifest.with_suffix(".pt")
    try:
        if manifest.exists():
            stated = json.loads(manifest.read_text())
            if stated["val_loss"] == val_loss or val_loss is None:
                return
            stated["val_loss"] = val_loss
        else:
            with atomic_write(weights) as file:
                torch.save(state, file)
            stated = {
                "step": state["step"], "sha256": sha256(weights), "bytes": weights.stat().st_size, "val_loss": val_loss,
                "config": state["config"],
            }  # fmt: skip
        with atomic_write(manifest) as file:
            file.write((json.dumps(stated, indent=1) + "\n").encode())
    except (OSError, RuntimeError) as error:  # torch reports a failed write as a RuntimeError
        if not manifest.exists():
            weights.unlink(missing_ok=True)
        raise SaveError(f"{weights} could not be written: {error}".split("\n")[0]) from None
    prune(out_dir, keep, keep_best)


def prune(out_dir, keep, keep_best):
    if keep == -1:
        return
    committed = manifests(out_dir)
    kept = set(committed[-keep:])
    if keep_best:
        losses = {path: val_loss_of(path) for path in committed}
        scored = [path for path in committed if losses[path] is not None]
        kept |= set(sorted(scored, key=losses.get)[:1])
    for path in committed:
        if path not in kept:
            with suppress(OSError):  # the manifest first: without it the rest is no checkpoint
                path.unlink()
                path.with_suffix(".pt").unlink()


def val_loss_of(manifest):
    try:
        return json.loads(manifest.read_text())["val_loss"]
    except (ValueError, KeyError, OSError):
        return None


def newest_checkpoint(out_dir, warn):
    """Path of the newest checkpoint whose bytes are what its manifest states, or None if none was ever committed.

    Damaged ones are passed over, each with a call of warn(text). Raises UserError if all are damaged.
    """
    committed = manifests(out_dir)
    newest = next(whole(reversed(committed), warn), None)
    if committed and newest is None:
        raise UserError(f"every checkpoint in {out_dir} is damaged; --init_from=scratch starts over, keeping the files")
    return newest


def need_checkpoint(out_dir, warn):
    """The same for a command that goes on from a run: raises UserError also if there is none."""
    path = newest_checkpoint(out_dir, warn)
    if path is None:
        raise UserError(f"no checkpoint in out_dir={out_dir}: expected the out_dir of a run of train.py")
    return path


def whole_checkpoints(out_dir, warn):
    """Paths of all checkpoints that are whole, oldest first; a call of warn(text) for each that is not."""
    return list(whole(manifests(out_dir), warn))


def whole(committed, warn):
    """Those checkpoints of these manifests whose bytes are what the manifest states."""
    for manifest in committed:
        weights = manifest.with_suffix(".pt")
        try:
            stated = json.loads(manifest.read_text())
            length, digest = weights.stat().st_size, sha256(weights)
            if length != stated["bytes"]:
                raise ValueError(f"it has {length} bytes instead of {stated['bytes']}")
            if digest != stated["sha256"]:
                raise ValueError("its sha256 is not the one in its manifest")
        except (ValueError, KeyError, TypeError, OSError) as error:
            warn(f"checkpoint {weights} is damaged ({error}); passed over")
        else:
            yield weights


def set_aside_after(out_dir, step):
    """Rename damaged checkpoints of later steps, so that the resumed run can write those steps again."""
    for manifest in manifests(out_dir):
        if step_of(manifest) > step:
            for path in (manifest, manifest.with_suffix(".pt")):
                if path.exists():
                    os.replace(path, path.with_name(path.name + ".damaged"))


def load_checkpoint(path):
    """The dict that was saved, tensors on the CPU. Only plain data and tensors are ever unpickled."""
    return torch.load(path, map_location="cpu", weights_only=True)


def load_optimizer(optimizer, state):
    """Bring back an optimizer's moments; its groups' settings stay what the config made them.

    `load_state_dict` alone would bring back the saved learning-rate multipliers and decay too.
    """
    settings = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, own in zip(optimizer.param_groups, settings, strict=True):
        group.update(own)
