"""Several processes: when gradients are sent, whose GPU is whose, what happens when memory is short."""

import json
import socket
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, Fork, finish, losses, run

from blockwise import UserError, distributed
from blockwise.distributed import World

# train.py, after changes that `patch` makes; what it counts in `found` rank 0 writes
SCRIPT = """
import json, os, runpy, sys
sys.path.insert(0, {root!r})
import torch
found = {{}}
{patch}
sys.argv = ["train.py"] + sys.argv[1:]
try:
    runpy.run_path("train.py", run_name="__main__")
finally:
    if os.environ["RANK"] == "0":
        open({path!r}, "w").write(json.dumps(found))
"""
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


def scripted(tmp_path, patch):
    """Paths of a script and of what it found."""
    script, found = tmp_path / "script.py", tmp_path / "found.json"
    script.write_text(SCRIPT.format(root=str(ROOT), patch=patch, path=str(found)))
    return str(script), found


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
import copy
import blockwise.training.machine as machine
def broken(model):
    def fail(*args):
        raise {error}
    model = copy.copy(model)
    if os.environ["RANK"] == "1":
        model.forward = fail
    return model
torch.compile, decide = broken, machine.for_this_machine
machine.for_this_machine = lambda config: machine.replace(decide(config), compile=True)  # by itself, as on CUDA
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
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.optim, "AdamW", Full)
    with pytest.raises(UserError, match=message):
        run(*small, f"--out_dir={tmp_path / 'full'}")


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


@pytest.mark.parametrize("uuids", ["ab", "aa"])
def test_a_gpu_that_two_processes_see(gpus, monkeypatch, uuids):
    """One visible to each: two of SLURM's, or one for two processes of torchrun, of which NCCL would say no word."""
    gpus(1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid=uuids[0]))
    store = torch.distributed.HashStore()
    store.set("gpu 1", f"{socket.gethostname()} {uuids[1]}")
    with pytest.raises(UserError, match="2 processes on 1 GPU, ") if uuids == "aa" else nullcontext():
        distributed.check_one_gpu_each(store, 0, 2, torch.device("cuda:0"))
