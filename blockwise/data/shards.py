"""Documents into a data set, shard by shard: tokenized in processes, resumed after a kill."""

import hashlib
import json
import multiprocessing
import multiprocessing.connection
import os
import shutil
import signal
import threading
from collections import Counter, deque
from concurrent.futures import ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from tqdm import tqdm

from blockwise import UserError, print0
from blockwise.data.writing import check_losses, dtype_of, sole_writer, write_dataset, write_ids
from blockwise.files import DTYPES, cause, free_space, replace

SPLITS = ("train", "val")
COUNTS = ("tokens", "documents", "bytes", "characters", "unknown", "lost")
WORKER_BYTES = 200 << 20  # of a process with a tokenizer and no text
AGAIN = "finished shards are kept, and the same command resumes from them"


def write_documents(folder, documents, tokenizer, source, settings, workers, shard_mb):
    """Tokenize documents in processes and write them as a data set, an end-of-text token after each.

    documents: gives ("train" or "val", text); the first shard_mb of text are shard 0, and so on. A finished shard stays
    in a work folder until the data set is complete, so that a run that was killed continues behind the last of them,
    where documents.position leads; the bytes are the same for any number of workers. source, settings: what decides the
    documents (see sources.Source); others get another work folder. settings["max_tokens"]: of training, to stop after.
    Raises UserError as write_dataset does, where disk or memory are too small, and where the tokenizer cannot spell the
    text.
    """
    folder, description, shard_bytes = Path(folder), tokenizer.description, max(1, round(shard_mb * 2**20))
    key = json.dumps([source.name, source.revision, source.files, settings, shard_bytes, description], sort_keys=True)
    work = folder / f"work-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    facts = {"revision": source.revision, **settings, "end_of_text": tokenizer.end_of_text}
    max_tokens = settings.get("max_tokens")
    text_bytes = source.text_bytes(settings["max_docs"])
    text_bytes = min(text_bytes, 6 * max_tokens) if max_tokens else text_bytes
    with sole_writer(folder):
        say_abandoned(folder, work)
        try:
            work.mkdir(exist_ok=True)
            check_space(work, text_bytes, workers, shard_bytes, description["vocab_size"])
            shards = write_shards(work, documents, tokenizer, workers, shard_bytes, text_bytes, max_tokens)
            total = {split: Counter() for split in SPLITS}
            for shard in shards:
                for split in shard.keys() - {"position"}:
                    total[split].update({key: shard[split][key] for key in COUNTS})
            every = total["train"] + total["val"]
            check_losses(tokenizer, every["tokens"], every["unknown"], every["characters"], every["lost"])
            facts["documents"] = {split: total[split]["documents"] for split in SPLITS}
            skipped = shards[-1]["position"]["skipped"] if shards else 0
            facts |= {"rows_skipped": skipped} if skipped else {}
            dtype = dtype_of(tokenizer.vocab_size)
            splits = {split: concatenate_shards(work, shards, split, dtype) for split in SPLITS}
            sizes = {split: total[split]["bytes"] for split in SPLITS}
            write_dataset(folder, splits, description, source.name, sizes, **facts)
            print_read(source, total, skipped)
            shutil.rmtree(work)
        except OSError as error:
            raise UserError(f"{work} cannot be written: {cause(error)}{again(work)}") from None
        except BrokenProcessPool:
            raise UserError(f"a worker was killed (out of memory? then use fewer --workers){again(work)}") from None
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"stopped{again(work)}") from None


def print_read(source, total, skipped):
    """Files, documents and bytes of each split."""
    files = [f"{len(part):,} file{'s' * (len(part) > 1)}" for part in source.files.values()]
    files = files if files[1:] else [f"the same {files[0]}"] * 2
    for split, part in zip(SPLITS, files, strict=True):
        print0(
            f"{split}: {total[split]['documents']:,} documents, {total[split]['bytes']:,} bytes of text, from {part}"
        )
    if skipped:
        print0(f"left out: {skipped:,} rows without text (--bad_rows=skip)")


def again(work):
    return f"; {AGAIN}" if any(work.glob("*.json")) else ""


def say_abandoned(folder, work):
    """Name the shards of other settings: nobody is at work on them, and only the user knows whether to keep them."""
    files = [path for path in folder.glob("work-*/*") if path.parent != work]
    if files:
        others, size = sorted({str(path.parent) for path in files}), sum(path.stat().st_size for path in files)
        print0(
            f"shards of other settings lie in {', '.join(others)}: {size / 1e9:,.3f} GB, "
            "kept for the command that made them; delete what is not wanted",
        )


def check_space(work, text_bytes, workers, shard_bytes, vocab_size):
    """State what is needed, and raise UserError where the disk or the memory is too small for it."""
    # GPT-2 and T5 take about a token for 4.4 bytes of text, bytes one for each; shards and data set lie there together.
    tokens = text_bytes / 4 if vocab_size > 1024 else text_bytes
    needed = 2 * np.dtype(DTYPES[dtype_of(vocab_size)]).itemsize * tokens
    disk = max(0, int(needed) - sum(path.stat().st_size for path in work.glob("*.bin")))
    memory = (workers + 1) * (WORKER_BYTES + 8 * shard_bytes)
    free, installed = free_space(work), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    left = "unknown" if free is None else f"{free / 1e9:,.1f} GB"
    print0(
        f"about {text_bytes / 1e9:,.3f} GB of text: needs {disk / 1e9:,.3f} GB of disk in {work.parent} "
        f"({left} free) and {memory / 1e9:,.1f} GB of memory for {workers} workers"
    )  # fmt: skip
    if free is not None and disk > free:
        raise UserError(f"{work.parent} needs about {disk / 1e9:,.1f} GB of disk, {free / 1e9:,.1f} GB are free")
    if memory > installed:
        raise UserError(f"--workers={workers} needs {memory / 1e9:,.1f} GB of memory: expected fewer workers")


def write_shards(work, documents, tokenizer, workers, shard_bytes, text_bytes, max_tokens=None):
    """Write the shards that are not there yet; returns the manifests of all, see write_shard."""
    for path in work.glob("*.tmp"):
        path.unlink()
    width = np.dtype(DTYPES[dtype_of(tokenizer.vocab_size)]).itemsize
    finished = {path.stem: shard for path in work.glob("*.json") if (shard := finished_shard(path, width))}
    if finished:
        print0(f"resuming: {len(finished)} shards already finished")
    # A new interpreter for each: a fork of a process with threads (pyarrow's) may hang.
    context = multiprocessing.get_context("spawn")
    try:
        pool = ProcessPoolExecutor(workers, context, start_worker, (tokenizer,))
    except OSError as error:
        raise UserError(f"processes cannot share locks here: {cause(error)} (a container needs /dev/shm)") from None
    shards, running = [], deque()  # in order: those that are finished, then (name, future or None) of the next ones
    while (name := f"{len(shards):06d}") in finished and not is_full(shards, max_tokens):
        shards.append(finished[name])
        documents.position = dict(finished[name]["position"])  # what lies before it need not even be fetched

    def finish_one():
        name, future = running.popleft()
        shards.append(result_of(future) if future else finished[name])

    try:
        with tqdm(total=text_bytes, initial=len(shards) * shard_bytes, unit="B", unit_scale=True, disable=None) as bar:
            todo = batches(documents, shard_bytes)
            while not is_full(shards, max_tokens) and (batch := next(todo, None)):
                name, future = f"{len(shards) + len(running):06d}", None
                shard = finished.get(name, {})
                if Counter(split for split, _ in batch) != {s: shard[s]["documents"] for s in SPLITS if s in shard}:
                    position = dict(documents.position)
                    with uninterrupted():  # it may start a worker
                        future = pool.submit(write_shard, work, name, batch, position, bool(max_tokens))
                running.append((name, future))
                if len(running) > 2 * workers:  # or else all of the text would wait in memory
                    finish_one()
                bar.update(shard_bytes)
            while running and not is_full(shards, max_tokens):
                finish_one()
    finally:
        with uninterrupted():
            pool.shutdown(cancel_futures=True)  # lets the shards in work finish
    return cut(shards, max_tokens)


def is_full(shards, max_tokens):
    return max_tokens and sum(shard["train"]["tokens"] for shard in shards if "train" in shard) >= max_tokens


def cut(shards, max_tokens):
    """The shards up to the end of the training document that makes max_tokens full."""
    total = 0
    for number, shard in enumerate(shards if max_tokens else []):
        tokens, size = 0, 0
        for documents, (length, text_bytes) in enumerate(shard.get("train", {}).get("lengths", []), 1):
            tokens += length
            size += text_bytes
            if total + tokens >= max_tokens:
                less = {"tokens": tokens, "bytes": size, "documents": documents}
                return [*shards[:number], {**shard, "train": {**shard["train"], **less}}]
        total += tokens
    return shards


@contextmanager
def uninterrupted():
    """Ctrl-C waits for the end of this, and never reaches the processes that begin in it."""
    came = []
    before = signal.signal(signal.SIGINT, lambda *about: came.append(about))  # the signal may find another thread
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # which a new process inherits
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        signal.signal(signal.SIGINT, before)
    if came:
        raise KeyboardInterrupt


def result_of(future):
    """Wait for a result. Ctrl-C is heard between short waits: inside of one it may leave the pool's locks broken."""
    done = False
    while not done:
        with uninterrupted():
            done = wait([future], timeout=0.1).done
    return future.result()


def finished_shard(path, width):
    """A shard's manifest, if it is whole and its files have the size that it states; else None."""
    try:
        shard = json.loads(path.read_text())
        for split in set(shard) - {"position"}:
            tokens, *_ = (shard[split][key] for key in (*COUNTS, "sha256"))
            if path.with_name(f"{path.stem}.{split}.bin").stat().st_size != width * tokens:
                return None
        return shard if shard["position"] else None
    except (OSError, ValueError, RecursionError, TypeError, KeyError):
        return None


def batches(documents, shard_bytes):
    """Lists of documents, each of just about shard_bytes of text."""
    batch, size = [], 0
    for split, text in documents:
        batch.append((split, text))
        size += len(text) if text.isascii() else len(text.encode())
        if size >= shard_bytes:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def start_worker(tokenizer):
    """End with the parent, even if it is killed."""
    global worker_tokenizer
    worker_tokenizer = tokenizer
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    parent = multiprocessing.parent_process().sentinel
    threading.Thread(target=lambda: (multiprocessing.connection.wait([parent]), os._exit(1)), daemon=True).start()


def write_shard(work, name, batch, position, with_lengths):
    """One shard: a file for each split that is in it, then its manifest, which commits it and is returned.

    position: behind its last document; with_lengths: state [tokens, bytes] of each document for training.
    """
    manifest = {"position": position}
    for split in sorted({split for split, _ in batch}):
        texts = [text for of, text in batch if of == split]
        path = work / f"{name}.{split}.bin"
        counts, lengths = Counter(), []
        stated = write_ids(unfinished(path), encoded(texts, counts, lengths), worker_tokenizer.vocab_size)
        manifest[split] = {key: counts[key] for key in COUNTS} | stated
        if with_lengths and split == "train":
            manifest[split]["lengths"] = lengths
        replace(unfinished(path), path)
    path = work / f"{name}.json"
    unfinished(path).write_text(json.dumps(manifest))
    replace(unfinished(path), path)
    return manifest


def encoded(texts, counts, lengths):
    """The ids of each text and the end of it; `counts` and `lengths` gather what the manifest states."""
    for text in texts:
        ids = worker_tokenizer.encode(text)
        unknown, lost = worker_tokenizer.losses(text, ids)
        size = len(text) if text.isascii() else len(text.encode())
        counts.update(documents=1, bytes=size, characters=len(text), unknown=unknown, lost=lost)
        lengths.append([len(ids) + 1, size])
        yield [*ids, worker_tokenizer.end_of_text]


def unfinished(path):
    """With the process's number: a worker whose parent was killed may still write while its successor begins."""
    return path.with_name(f"{path.name}.{os.getpid()}.tmp")


def concatenate_shards(work, shards, split, dtype):
    """A split's token ids, shard by shard. Raises UserError, after a look at all, if some are not as stated."""
    for number, shard in enumerate(shards):
        if split in shard:
            path = work / f"{number:06d}.{split}.bin"
            data = path.read_bytes()
            if hashlib.sha256(data).hexdigest() != shard[split]["sha256"]:
                raise UserError(f"{discard_damaged(work, shards)}: run the same command again to rebuild them")
            yield np.frombuffer(data, dtype=DTYPES[dtype])[: shard[split]["tokens"]]


def discard_damaged(work, shards):
    """Make unfinished all shards that are not what their manifests state; returns what there is to say of them."""
    damaged = []
    for number, shard in enumerate(shards):
        for split in set(shard) - {"position"}:
            path = work / f"{number:06d}.{split}.bin"
            if hashlib.sha256(path.read_bytes()).hexdigest() != shard[split]["sha256"]:
                damaged.append(path)
                path.with_name(f"{number:06d}.json").unlink(missing_ok=True)
    more = f" and {len(damaged) - 1} more" if damaged[1:] else ""
    return f"{damaged[0]}{more} damaged"
