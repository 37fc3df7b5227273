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

from blockwise import UserError
from blockwise.data.writing import sole_writer, write_dataset, write_ids

SPLITS = ("train", "val")
WORKER_BYTES = 200 << 20  # of a process with a tokenizer and no text
AGAIN = "the shards that are finished are kept, and the same command goes on from them"


def write_documents(folder, documents, tokenizer, source, settings, workers, shard_mb):
    """Tokenize documents in processes and write them as a data set, an end-of-text token after each.

    documents: iterator of ("train" or "val", text); the first shard_mb of text are shard 0, and so on. A finished shard
    stays in a work folder until the data set is complete, so that a run that was killed goes on from there; the bytes
    are the same for any number of workers. source, settings: what decides the documents (see documents.Source); others
    get another work folder. Raises UserError as write_dataset does, and where disk or memory are too small.
    """
    folder, description, shard_bytes = Path(folder), tokenizer.description, max(1, round(shard_mb * 2**20))
    if description["vocab_size"] > 65536:
        raise UserError(f"a vocabulary of {description['vocab_size']} does not fit uint16 token ids: at most 65536")
    key = json.dumps([source.name, source.revision, source.files, settings, shard_bytes, description], sort_keys=True)
    work = folder / f"work-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    facts = {"revision": source.revision, **settings, "end_of_text": tokenizer.end_of_text}
    text_bytes = source.text_bytes(settings["max_docs"])
    with sole_writer(folder):
        say_abandoned(folder, work)
        try:
            work.mkdir(exist_ok=True)
            check_space(work, text_bytes, workers, shard_bytes)
            shards = write_shards(work, documents, tokenizer, workers, shard_bytes, text_bytes)
            facts["documents"] = {s: sum(shard[s]["documents"] for shard in shards if s in shard) for s in SPLITS}
            splits = {split: concatenate_shards(work, shards, split) for split in SPLITS}
            write_dataset(folder, splits, description, source.name, **facts)
            shutil.rmtree(work)
        except OSError as error:
            raise UserError(f"{work} cannot be written: {error.strerror}{again(work)}") from None
        except BrokenProcessPool:
            raise UserError(f"a worker was killed (out of memory? then use fewer --workers){again(work)}") from None
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"stopped{again(work)}") from None


def again(work):
    return f"; {AGAIN}" if any(work.glob("*.json")) else ""


def say_abandoned(folder, work):
    """Name the shards of other settings: nobody is at work on them, and only the user knows whether to keep them."""
    files = [path for path in folder.glob("work-*/*") if path.parent != work]
    if files:
        others, size = sorted({str(path.parent) for path in files}), sum(path.stat().st_size for path in files)
        print(
            f"shards of other settings lie in {', '.join(others)}: {size / 1e9:,.3f} GB, "
            "kept for the command that made them; delete what is not wanted",
            flush=True,
        )


def check_space(work, text_bytes, workers, shard_bytes):
    """State what is needed, and raise UserError where the disk or the memory is too small for it."""
    # GPT-2 and T5 take about a token for 4.4 bytes of text; shards and data set lie on the disk together.
    disk = max(0, text_bytes - sum(path.stat().st_size for path in work.glob("*.bin")))
    memory = (workers + 1) * (WORKER_BYTES + 8 * shard_bytes)
    free, installed = shutil.disk_usage(work).free, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    print(
        f"about {text_bytes / 1e9:,.3f} GB of text: needs {disk / 1e9:,.3f} GB of disk in {work.parent} "
        f"({free / 1e9:,.1f} GB free) and {memory / 1e9:,.1f} GB of memory for {workers} workers", flush=True
    )  # fmt: skip
    if disk > free:
        raise UserError(f"{work.parent} needs about {disk / 1e9:,.1f} GB of disk, {free / 1e9:,.1f} GB are free")
    if memory > installed:
        raise UserError(f"--workers={workers} needs {memory / 1e9:,.1f} GB of memory: expected fewer workers")


def write_shards(work, documents, tokenizer, workers, shard_bytes, text_bytes):
    """Write the shards that are not there yet; returns the manifests of all, {split: {tokens, sha256, documents}}."""
    for path in work.glob("*.tmp"):
        path.unlink()
    finished = {path.stem: shard for path in work.glob("*.json") if (shard := finished_shard(path))}
    if finished:
        print(f"going on: {len(finished)} shards are finished", flush=True)
    # A new interpreter for each: a fork of a process with threads (pyarrow's) may hang.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, start_worker, (tokenizer,))
    names, running = [], deque()
    try:
        with tqdm(total=text_bytes, unit="B", unit_scale=True, disable=None) as bar:
            for number, batch in enumerate(batches(documents, shard_bytes)):
                names.append(name := f"{number:06d}")
                stated = {split: part["documents"] for split, part in finished.get(name, {}).items()}
                if stated != Counter(split for split, _ in batch):
                    with uninterrupted():  # it may start a worker
                        running.append((name, pool.submit(write_shard, work, name, batch)))
                if len(running) > 2 * workers:  # or else all of the text would wait in memory
                    name, shard = running.popleft()
                    finished[name] = result_of(shard)
                bar.update(shard_bytes)
            finished.update((name, result_of(shard)) for name, shard in running)
    finally:
        with uninterrupted():
            pool.shutdown(cancel_futures=True)  # lets the shards in work finish
    return [finished[name] for name in names]


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


def finished_shard(path):
    """A shard's manifest, if it is whole and its files have the size that it states; else None."""
    try:
        shard = json.loads(path.read_text())
        for split in shard:
            tokens, _, _ = (shard[split][key] for key in ("tokens", "sha256", "documents"))
            if path.with_name(f"{path.stem}.{split}.bin").stat().st_size != 2 * tokens:
                return None
        return shard
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


def write_shard(work, name, batch):
    """One shard: a file for each split that is in it, then its manifest, which commits it and is returned."""
    manifest = {}
    for split in sorted({split for split, _ in batch}):
        texts = [text for of, text in batch if of == split]
        path = work / f"{name}.{split}.bin"
        manifest[split] = write_ids(temporary(path), encoded(texts), worker_tokenizer.vocab_size)
        manifest[split]["documents"] = len(texts)
        os.replace(temporary(path), path)
    path = work / f"{name}.json"
    temporary(path).write_text(json.dumps(manifest))
    os.replace(temporary(path), path)
    return manifest


def encoded(texts):
    for text in texts:
        yield [*worker_tokenizer.encode(text), worker_tokenizer.end_of_text]


def temporary(path):
    return path.with_name(f"{path.name}.{os.getpid()}.tmp")


def concatenate_shards(work, shards, split):
    """A split's token ids, shard by shard. Raises UserError, after a look at all, if some are not as stated."""
    for number, shard in enumerate(shards):
        if split in shard:
            path = work / f"{number:06d}.{split}.bin"
            data = path.read_bytes()
            if hashlib.sha256(data).hexdigest() != shard[split]["sha256"]:
                raise UserError(f"{discard_damaged(work, shards)}: give the same command again, which makes them anew")
            yield np.frombuffer(data, dtype="<u2")


def discard_damaged(work, shards):
    """Make unfinished all shards that are not what their manifests state; returns what there is to say of them."""
    damaged = []
    for number, shard in enumerate(shards):
        for split, stated in shard.items():
            path = work / f"{number:06d}.{split}.bin"
            if hashlib.sha256(path.read_bytes()).hexdigest() != stated["sha256"]:
                damaged.append(path)
                path.with_name(f"{number:06d}.json").unlink(missing_ok=True)
    more = f" and {len(damaged) - 1} more" if damaged[1:] else ""
    return f"{damaged[0]}{more} damaged"
