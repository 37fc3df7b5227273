"""What other people's trainers import: the wheel in an empty environment, and every example run to its end."""

import csv
import os
import re
import runpy
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import transformers
from conftest import ROOT

import blockwise

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
SPLIT = """
import sys
from blockwise.blocks import block_type
from blockwise.rules import Shape, mup
llama, gpt_neo, t5 = "layers.1.self_attn.v_proj.weight", "transformer.wte.weight", "decoder.final_layer_norm.weight"
print(block_type(llama), block_type(gpt_neo), block_type(t5), mup(Shape(256, 4, 4, 4096, 1024)).lr_mult["VO"])
assert not {"torch", "numpy"} & set(sys.modules)
import blockwise
print(blockwise.__version__, blockwise.__file__)
"""
TINY = dict(vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
MODELS = {  # one LLaMA, one with experts, and GPT-2, whose QKV is one matrix
    "llama": transformers.LlamaConfig(**TINY),
    "mixtral": transformers.MixtralConfig(**TINY, num_local_experts=2),
    "gpt2": transformers.GPT2Config(vocab_size=64, n_positions=16, n_embd=16, n_layer=1, n_head=2),
}


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Python of an environment that has the wheel and nothing else; built from a copy, so that no build/ is left."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "blockwise", folder / "blockwise", ignore=shutil.ignore_patterns("__pycache__"))
    build = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "--no-index", "-q"]
    subprocess.run([*build, "-w", folder / "dist"], cwd=folder, check=True, capture_output=True, text=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "env"], check=True)
    site = next((folder / "env").glob("lib/python*/site-packages"))
    with zipfile.ZipFile(next((folder / "dist").glob("*.whl"))) as wheel:  # which is what installing it does
        wheel.extractall(site)
    return folder / "env" / "bin" / "python", site


def run(python, *words):
    """Outside of the checkout."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [python, *words]
    return subprocess.run(
        command, cwd=python.parent, env=environment, capture_output=True, text=True, check=True
    ).stdout


def test_the_wheel_needs_nothing(installed):
    python, site = installed
    split, where = run(python, "-c", SPLIT).splitlines()
    assert split == "VO Emb Norm 0.5" and where == f"{blockwise.__version__} {site / 'blockwise' / '__init__.py'}"
    metadata = next(site.glob("blockwise_lr-*.dist-info")) / "METADATA"
    needs = re.findall(r"^Requires-Dist: (.*)", metadata.read_text(), re.MULTILINE)
    assert needs and all("extra ==" in line for line in needs)
    assert not [line for line in needs if line.startswith("torch") and "<" in line]
    assert (site / "blockwise" / "py.typed").is_file()


def test_with_torch_and_transformers_the_readmes_lines_run(installed, tmp_path):
    """The five lines, the split of three families by the command and an example, all by the wheel."""
    python, site = installed
    packages = [path for path in sys.path if path.endswith("site-packages")]
    (site / "others.pth").write_text(
        "\n".join(packages)
    )  # their own .pth files, which name this checkout, do not count
    for name, config in MODELS.items():
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / name)
    (snippet,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    lines, found = re.subn(r'from_pretrained\(".*?"\)', f'from_pretrained("{tmp_path / "llama"}")', snippet)
    assert found == 1
    script = f"""
{lines}
print({{g["block"]: g["lr"] for g in optimizer.param_groups}})
from blockwise.blocks import main
for name in {list(MODELS)}:
    print(main([f"{tmp_path}/{{name}}", "--split_qkv"]))
import blockwise, runpy
print(blockwise.__file__)
runpy.run_path("{ROOT}/examples/torch_schedulers.py")
"""
    out = run(python, "-c", script)
    assert "'QK': 0.0048, 'VO': 0.0024" in out and str(site / "blockwise") in out
    for first in ("LlamaForCausalLM", "MixtralForCausalLM", "GPT2LMHeadModel", "keeps  LambdaLR", r"Other +1x"):
        assert re.search(rf"^{first}", out, re.MULTILINE), first


def test_one_place_states_the_version():
    project = (ROOT / "pyproject.toml").read_text()
    assert 'version = { attr = "blockwise.__version__" }' in project and not re.search(r'^version = "', project, re.M)
    assert f"version: {blockwise.__version__}" in (ROOT / "CITATION.cff").read_text()
    assert f"## {blockwise.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def example(name, monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
    return runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")


def test_every_example_is_short_and_has_a_test():
    tests = Path(__file__).read_text()
    assert len(EXAMPLES) == 5
    for path in EXAMPLES:
        assert len(path.read_text().splitlines()) <= 40 and tests.count(f'"{path.name}"') >= 1, path.name


def test_trainer(tmp_path, monkeypatch):
    """Its cosine keeps the ratios, every block's rate is logged, and a second call continues from its checkpoint."""
    rows = example("hf_trainer.py", monkeypatch, tmp_path)["trainer"].state.log_history
    rates = [row for row in rows if "loss" in row]
    assert len(rates) == 4 and all(row["lr/QK"] == pytest.approx(8 * row["lr/Norm"]) for row in rates)
    assert rates[0]["lr/Norm"] > rates[-1]["lr/Norm"]
    shutil.rmtree(tmp_path / "checkpoint-20")
    again = example("hf_trainer.py", monkeypatch, tmp_path)["trainer"].state
    assert again.global_step == 20 and len([row for row in again.log_history if "loss" in row]) == 4
    assert again.log_history[-2]["loss"] == pytest.approx(rates[-1]["loss"], rel=1e-5)  # the ten steps again


def test_accelerate(tmp_path, monkeypatch, capsys):
    groups = example("accelerate_loop.py", monkeypatch, tmp_path / "state")["optimizer"].param_groups
    assert {group["lr"] for group in groups} == {1e-4}  # one floor for all
    first = capsys.readouterr().out.splitlines()
    assert len(first) == 20 and "'QK': '8.00e-03'" in first[4] and "'Norm': '1.00e-03'" in first[4]
    assert example("accelerate_loop.py", monkeypatch, tmp_path / "state")["scheduler"].last_epoch == 40


def test_lightning(tmp_path, monkeypatch):
    pytest.importorskip("lightning", reason="the example is for lightning")
    trainer = example("lightning_module.py", monkeypatch, tmp_path)["trainer"]
    assert trainer.global_step == 20
    rows = list(csv.DictReader(next(tmp_path.rglob("metrics.csv")).open()))
    logged = [row for row in rows if row.get("lr-AdamW/QK")]
    assert float(logged[0]["lr-AdamW/QK"]) / float(logged[0]["lr-AdamW/Norm"]) == pytest.approx(8)
    assert {group["lr"] for group in trainer.optimizers[0].param_groups} == {1e-4}


def test_schedulers(monkeypatch, capsys):
    example("torch_schedulers.py", monkeypatch)
    lines = dict(reversed(line.split("  ", 1)) for line in capsys.readouterr().out.splitlines())
    keeping = {name.partition(":")[0] for name, verdict in lines.items() if verdict == "keeps"}
    assert keeping == {"LambdaLR", "LinearLR", "CosineAnnealingLR", "OneCycleLR(max_lr of each group)"}
    assert len(lines) == 7


@pytest.mark.slow
def test_fsdp2(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command.append(str(ROOT / "examples" / "fsdp2_loop.py"))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert re.search(r"^QK +8x +4 +4,096 ", done.stdout, re.MULTILINE)
    assert float(re.search(r"loss of rank 0 at the end: (.*)", done.stdout)[1]) < 3.9  # ln 64 = 4.16 at the start
