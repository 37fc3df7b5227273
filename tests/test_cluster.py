"""A study on a Ray cluster: two nodes on this machine, of which one is lost; what crashes; what Ctrl-C saves."""

import json
import os
import signal
import sys
import threading
import time

import pytest
from test_compare import FEW, study  # noqa: F401 (a fixture)
from test_results import moved

import compare
from blockwise import UserError
from blockwise.checkpoint import manifests
from blockwise.study.cluster import RayEngine
from blockwise.study.config import StudyConfig

LONG = FEW + "max_iters = lr_decay_iters = 300\neval_interval = 20\n"


def test_without_ray_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"engine=ray needs Ray: pip install .*cluster"):
        RayEngine(StudyConfig(engine="ray"))


@pytest.fixture
def cluster(monkeypatch):
    """Two nodes with a core each: (the cluster, the second node)."""
    pytest.importorskip("ray", reason="needs Ray, which make setup leaves out: pip install -e '.[cluster]'")
    import ray
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    node = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    yield cluster, cluster.add_node(**node)
    ray.shutdown()
    cluster.shutdown()


def on(cluster, words):
    return [*words, "--engine=ray", f"--address={cluster.address}"]


def with_checkpoints(runs, count, act):
    """A thread that acts once so many runs have a checkpoint."""

    def wait():
        deadline = time.monotonic() + 120
        while sum(any(manifests(folder)) for folder in runs.glob("*/")) < count and time.monotonic() < deadline:
            time.sleep(0.05)
        act()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def facts(path):
    """study.json without what differs from one call to the next: times, and what was asked of the engine."""
    found = json.loads(path.read_text())
    for run in found["runs"]:
        run.update(seconds=None, folder=os.path.basename(run["folder"]))
    return {**found, "study": {**found["study"], "engine": None, "address": None, "out_dir": None}}


@pytest.mark.slow
def test_a_node_is_lost_in_the_middle_of_a_study(cluster, study, tmp_path):  # noqa: F811
    """Its run goes on from its checkpoint on the other node, and the study says what it says without a cluster."""
    cluster, node = cluster
    out = tmp_path / "out"
    killer = with_checkpoints(out / "runs", 2, lambda: cluster.remove_node(node, allow_graceful=False))
    assert compare.main(on(cluster, study(LONG))) == 0
    killer.join()
    results = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert sorted(result["seconds"] is None for result in results) == [False, False, False, True]
    log = next(out / "runs" / r["identity"] / "log.txt" for r in results if r["seconds"] is None).read_text()
    assert "resum" in log, log
    assert compare.main(moved(study(LONG), tmp_path / "local" / "out")) == 0
    assert facts(out / "study.json") == facts(tmp_path / "local" / "out" / "study.json")


@pytest.mark.slow
def test_a_crash_is_reported_once_and_ctrl_c_saves_the_rest(cluster, study, tmp_path, capsys):  # noqa: F811
    """The first arm wants a device that no node has; the two others are interrupted in the middle."""
    runs, endless = tmp_path / "out" / "runs", LONG + "max_iters = lr_decay_iters = 100000\n"
    crash = "arms = {'bad': '--device=cuda:77', **arms}\nlearning_rates['bad'] = [1e-3]\n"
    stopper = with_checkpoints(runs, 2, lambda: os.kill(os.getpid(), signal.SIGINT))
    assert compare.main(on(cluster[0], study(endless + crash))) == 0
    stopper.join()
    out = capsys.readouterr().out
    assert out.count("failed, exit status 2") == 1 and "device=cuda:77" in out
    assert "stopped by SIGINT; the same command resumes it" in out
    saved = [folder for folder in runs.iterdir() if manifests(folder)]
    assert len(saved) == 2 and all("stopped by SIGTERM" in (folder / "log.txt").read_text() for folder in saved)
