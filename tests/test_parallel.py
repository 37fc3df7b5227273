"""Several processes: when gradients are sent, whose GPU is whose, what happens when memory is short."""

import json
import shutil
import socket
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import Fork, finish, losses, metrics, out_dir, run
from helpers import scripted
from torch._dynamo.exc import BackendCompilerFailed
from torch._inductor.exc import InvalidCxxCompiler

import train
from blockwise import UserError, distributed
from blockwise.distributed import World
from blockwise.training import machine
from blockwise.training.machine import is_out_of_memory

# train.py, after changes that `patch` makes; what it counts in `found` rank 0 writes
# Buckets of 50 kB, the size of a block, and a compiler that only counts
COUNT_GRAPHS = """
import functools
import blockwise.training.parallel as parallel
torch.distributed._DEFAULT_FIRST_BUCKET_BYTES = 50000
parallel.DistributedDataParallel = functools.partial(parallel.DistributedDataParallel, bucket_cap_mb=0.05)
found["train"] = found["eval"] = 0
def count(graph, inputs):
    found["train" if torch.is_grad_enabled() else "eval"] += 1
    return graph.forward
torch.compile = functools.partial(torch.compile, backend=count)
"""


GROWING = ("--arch_warmup=True", "--arch_warmup_groups=2", "--arch_warmup_interval=2")  # 2, 3 and 4 layers


@pytest.mark.parametrize("words, graphs", [([], range(4, 9)), (GROWING, [2, 3])], ids=["whole", "block by block"])
def test_compiled_graphs_end_where_buckets_do(small, tmp_path, words, graphs):
    """One graph for all of the model would hold back every gradient until the backward pass ends.

    Compiled block by block, all blocks share one graph (here in one or two buckets), and more of them cost none.
    """
    words = (*small, *words, "--n_layer=4", "--n_embd=32", "--dropout=0", "--learning_rate=1e-4", "--min_lr=1e-5")
    script, found = scripted(tmp_path, COUNT_GRAPHS)
    compiled = (*words, "--compile=True", f"--out_dir={tmp_path / 'compiled'}")
    status, _, err = finish(Fork(*compiled, processes=2, script=script))
    assert status == 0, err
    found = json.loads(found.read_text())
    assert found["train"] in graphs
    run(*words)
    for step, pair in losses(words).items():
        assert losses(compiled)[step] == pytest.approx(pair, abs=1e-5), step


FAIL_ON_RANK_1 = """
import copy, dataclasses
import blockwise.training as training
def broken(model):
    def fail(*args):
        raise {error}
    model = copy.copy(model)
    if os.environ["RANK"] == "1":
        model.forward = fail
    return model
torch.compile, decide = broken, training.for_this_machine
training.for_this_machine = lambda config: dataclasses.replace(decide(config), compile=True)  # by itself, as on CUDA
"""


def test_what_fails_on_one_rank_is_known_to_all(small, tmp_path):
    """compile=auto: both train in eager mode; out of memory: one line of rank 0, and both end with status 2."""
    short = (*small, "--max_iters=1", "--eval_interval=0")
    script, _ = scripted(tmp_path, FAIL_ON_RANK_1.format(error='RuntimeError("no compiler here")'))
    status, _, err = finish(Fork(*short, processes=2, script=script))
    assert status == 0 and "torch.compile failed, continuing without it: it failed on another rank" in err, err
    script, _ = scripted(tmp_path, FAIL_ON_RANK_1.format(error='torch.OutOfMemoryError("CUDA out of memory")'))
    process = Fork(*short, processes=2, script=script)
    _, _, err = finish(process)
    assert [worker.exitcode for worker in process.workers] == [2, 2], err
    (line,) = err.splitlines()
    assert line.startswith("error: out of memory") and "torch.compile" not in line


def test_out_of_memory_is_one_line(small, tmp_path, monkeypatch, capsys):
    """Also where the compiler wraps it, and in a step that follows the trial."""

    def fail(*args, **kwargs):
        try:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        except torch.OutOfMemoryError as error:
            raise RuntimeError("backend='inductor' raised: out of memory") from error

    monkeypatch.setattr(torch, "compile", lambda model: fail)
    message = r"out of memory on cpu, [\d,]+ MB are free: .*batch_size=2.*activation_checkpointing"
    with pytest.raises(UserError, match=message) as caught:
        run(*small, "--compile=True")
    assert caught.value.status == 2 and "\n" not in str(caught.value)
    assert "torch.compile failed" not in capsys.readouterr().err

    class Full(torch.optim.AdamW):
        def step(self):
            raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")

    monkeypatch.setattr(torch.optim, "AdamW", Full)
    with pytest.raises(UserError, match=message):
        run(*small, f"--out_dir={tmp_path / 'full'}")


@pytest.mark.parametrize(
    "error, short",
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (MemoryError(), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (torch.AcceleratorError("CUDA error: out of memory"), True),
        (torch.distributed.DistBackendError("NCCL error: Cuda failure 2 'out of memory'"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 8 bytes"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_counts_as_want_of_memory(error, short):
    outer = RuntimeError("backend='inductor' raised:")
    outer.__cause__ = error
    assert is_out_of_memory(error) == is_out_of_memory(outer) == short


def test_the_reason_for_eager_mode_is_the_cause(small, monkeypatch, capsys):
    """And not the first line of the compiler's own error, which says that a backend raised one."""

    def broken(model):
        def fail(*args):
            raise BackendCompilerFailed(broken, InvalidCxxCompiler(), None) from None

        return fail

    monkeypatch.setattr(torch, "compile", broken)
    decide = machine.for_this_machine
    monkeypatch.setattr(train, "for_this_machine", lambda config: replace(decide(config), compile=True))
    assert run(*small, "--max_iters=1", "--eval_interval=0") == 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "torch.compile failed" in line]
    assert "InvalidCxxCompiler: No working C++ compiler found" in line


class Store(dict):
    """As much of torch.distributed's store as leaving needs."""

    def add(self, key, number):
        self[key] = self.get(key, 0) + number
        return self[key]


@pytest.mark.parametrize("others", [0, 1])
def test_the_group_is_destroyed_by_all_or_none(monkeypatch, others):
    """NCCL would wait in it for who stays, and its one line with it."""
    clock, destroyed = iter(range(100)), []
    monkeypatch.setattr(distributed.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: destroyed.append(True))
    with pytest.raises(UserError), World(0, 2, torch.device("cpu"), Store(leaving=others)):
        raise UserError("a bad token id")
    assert len(destroyed) == others


@pytest.fixture
def gpus(monkeypatch):
    """A machine with as many GPUs as the test says, under torchrun's variables."""

    def there(number, rank=0, size=1):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: number)
        monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
        launched = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "localhost", "MASTER_PORT": 1}
        for name, value in launched.items() if size > 1 else ():
            monkeypatch.setenv(name, str(value))

    return there


def test_whose_gpu(gpus):
    gpus(8)
    assert distributed.find_device("cuda", 3) == torch.device("cuda:3")
    assert distributed.find_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(UserError, match="process 8 has no GPU, 8 here"):
        distributed.find_device("cuda", 8)
    gpus(1)  # as SLURM shows them, each task its own
    assert distributed.find_device("cuda", 1) == torch.device("cuda:0")
    with pytest.raises(UserError, match="no GPU, 1 here"):
        distributed.find_device("cuda:1")


def test_one_gpu_for_all_is_refused(gpus, monkeypatch):
    gpus(8, rank=1, size=2)
    with pytest.raises(UserError, match=r"device=cuda:1: .*backend=gloo.*expected device=cuda,"):
        World.start("cuda:1", "nccl")
    joined = {}
    monkeypatch.setattr(distributed, "attempt_store", lambda timeout: joined)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda backend, **more: joined.update(backend=backend))
    assert World.start("cuda:1", "gloo").device == torch.device("cuda:1") and joined["backend"] == "gloo"


def test_nccl_without_gpus_is_refused(gpus):
    gpus(0, rank=1, size=2)
    with pytest.raises(UserError, match="backend=nccl: 2 processes on device=cpu have no GPUs; expected backend=gloo"):
        World.start("cpu", "nccl")


@pytest.mark.parametrize("uuids", ["ab", "aa"])
def test_a_gpu_that_two_processes_see(gpus, monkeypatch, uuids):
    """One visible to each: two of SLURM's, or one for two processes of torchrun, of which NCCL would say no word."""
    gpus(1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid=uuids[0]))
    store = torch.distributed.HashStore()
    store.set("gpu 1", f"{socket.gethostname()} {uuids[1]}")
    with pytest.raises(UserError, match="2 processes on 1 GPU, ") if uuids == "aa" else nullcontext():
        distributed.check_one_gpu_each(store, 0, 2, torch.device("cuda:0"))


MANY = ("--learning_rate=1e-4", "--min_lr=1e-5", "--max_iters=20", "--lr_decay_iters=20", "--eval_interval=10")
EVERYTHING = ("--bias=True", "--ema_decay=0.9", "--qk_clip=1e-3", "--activation_checkpointing=True", "--eval_iters=3")
CASES = {
    "adamw": (4, 1e-5, EVERYTHING),
    "muon": (2, 1e-5, ("--optimizer=muon", "--model_type=llama", "--n_kv_head=1")),
    "bfloat16": (2, 1e-2, ("--optimizer=lion", "--learning_rate=1e-5", "--dtype=bfloat16", "--qk_norm=True")),
    "sgd": (2, 1e-5, ("--optimizer=sgd", "--n_embd=14")),  # of 7 or 14 rows, which two processes share unevenly
}


SLOW = ("muon", "bfloat16", "sgd")


@pytest.mark.parametrize(
    "processes, tolerance, words",
    [pytest.param(*case, id=name, marks=[pytest.mark.slow] * (name in SLOW)) for name, case in CASES.items()],
)
def test_fsdp_trains_like_one_process(small, tmp_path, processes, tolerance, words):
    """And each continues what the other has saved: 10 steps of one process, 10 of FSDP on two, 4 more of one."""
    words = (*small, *MANY, *words)
    alone = (*words, f"--out_dir={tmp_path / 'alone'}")
    run(*alone)
    status, _, err = finish(Fork(*words, "--parallel=fsdp", processes=processes))
    assert status == 0, err
    assert_close(metrics(words), metrics(alone), tolerance)
    assert form(newest(words)) == form(newest(alone))

    mixed = (*words, f"--out_dir={tmp_path / 'mixed'}")
    shutil.copytree(out_dir(alone), out_dir(mixed))
    for path in out_dir(mixed).glob("ckpt_00000020.*"):
        path.unlink()
    status, out, err = finish(Fork(*mixed, "--parallel=fsdp", "--init_from=resume", processes=2))
    assert status == 0 and "parallel was auto, is fsdp" in out, err
    assert_close(metrics(mixed), metrics(alone), tolerance)
    for words in (mixed, alone):
        run(*words, "--init_from=resume", "--max_iters=24")
    assert_close(metrics(mixed), metrics(alone), tolerance)


@pytest.mark.slow
def test_fsdp_in_bfloat16_follows_float32(small, tmp_path):
    """100 steps in which the loss more than halves; weights and moments stay in float32."""
    words = (*small, "--max_iters=100", "--lr_decay_iters=100", "--eval_interval=50", "--min_lr=1e-4", "--eval_iters=2")
    words = (*words, "--gradient_accumulation_steps=2")
    alone = (*words, f"--out_dir={tmp_path / 'alone'}")
    run(*alone)
    status, _, err = finish(Fork(*words, "--parallel=fsdp", "--dtype=bfloat16", processes=2))
    assert status == 0, err
    for step, pair in losses(alone).items():
        assert losses(words)[step] == pytest.approx(pair, abs=1e-2), step
    assert losses(alone)[99][0] < 0.5 * losses(alone)[0][0]
    assert form(newest(words)) == form(newest(alone))


def assert_close(rows, expected, tolerance):
    """Losses, and more loosely the norms of blocks, step by step."""
    assert list(rows) == list(expected)
    for step, row in rows.items():
        for key in (key for key in row if "loss" in key):
            assert row[key] == pytest.approx(expected[step][key], abs=tolerance), (step, key)
        for key in (key for key in row if "norm" in key or "update" in key):
            assert row[key] == pytest.approx(expected[step][key], rel=max(1e-2, 10 * tolerance)), (step, key)


def newest(words):
    return torch.load(max(out_dir(words).glob("ckpt_*.pt")), weights_only=True)


def form(tree):
    """A checkpoint without its numbers."""
    if isinstance(tree, dict):
        return {key: form(value) for key, value in tree.items() if key not in ("config", "wandb_id")}
    return (tree.shape, tree.dtype) if isinstance(tree, torch.Tensor) else type(tree)


MEASURE_SHARE = """
from blockwise.optimizers import local
step = torch.optim.AdamW.step
def measured(self):
    step(self)
    params = [p for group in self.param_groups for p in group["params"]]
    tensors = [t for p in params for t in (p, p.grad, *self.state[p].values())]
    found["share"] = sum(local(t).nbytes for t in tensors) / sum(t.nbytes for t in tensors)
torch.optim.AdamW.step = measured
"""


COUNT_GATHERS = """
from torch.distributed.fsdp._fully_shard import _fsdp_param_group as groups
gather, found["gathers"] = groups.foreach_all_gather, 0
def counted(*args):
    found["gathers"] += 1
    return gather(*args)
groups.foreach_all_gather = counted
"""


@pytest.mark.slow
def test_fsdp_compiled_and_its_share_of_memory(small, tmp_path):
    """Two processes hold half each of weights, gradients and state; every block runs one compiled graph.

    In bfloat16 too, CUDA's default: a block is one group with its norms, gathered once in each pass.
    """
    words = (*small, "--n_layer=4", "--dropout=0", "--learning_rate=1e-4", "--min_lr=1e-5")
    script, found = scripted(tmp_path, COUNT_GRAPHS + MEASURE_SHARE + COUNT_GATHERS)
    keys = ("--compile=True", "--parallel=fsdp", "--dtype=bfloat16", f"--out_dir={tmp_path / 'compiled'}")
    compiled = (*words, *keys)
    status, _, err = finish(Fork(*compiled, processes=2, script=script))
    assert status == 0, err
    found = json.loads(found.read_text())
    assert found["train"] == 2 and found["share"] < 0.6  # a block, the loss: no graph breaks
    # 4 blocks and the rest; two first passes with an evaluation each, 8 steps of 2 micro-steps, 3 evaluations of 2
    assert found["gathers"] == 5 * (2 * (2 + 1) + 8 * 2 * 2 + 3 * 2)
    run(*words)
    assert_close(metrics(compiled), metrics(words), 1e-2)


@pytest.mark.parametrize(
    "word", ["optimizer=adam_mini", "dtype=float16", "arch_warmup=True", "lr_mult=auto", "curvature_interval=5"]
)
def test_what_fsdp_lacks_is_one_line(small, word):
    with pytest.raises(UserError, match=f"{word}: impossible with parallel=fsdp.*expected parallel=ddp"):
        run(*small, "--parallel=fsdp", f"--{word}")
