"""What only a CUDA device can show: bf16 and compile by default, exact resume with deterministic=True, agreement."""

import pytest
import torch
from conftest import losses, run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("model", ["gpt2", "llama"])
def test_float32_on_cuda_agrees_with_the_cpu(small, tmp_path, model):
    """To 1e-2, since CUDA products run in TF32; without dropout, whose random numbers differ."""
    words = (*small, f"--model_type={model}", "--dropout=0", "--dtype=float32")
    cuda = (*words, "--device=cuda", "--compile=False", f"--out_dir={tmp_path / 'cuda'}")
    run(*words)
    run(*cuda)
    for step, pair in losses(words).items():
        assert losses(cuda)[step] == pytest.approx(pair, abs=1e-2)


def test_the_defaults_train(small):
    assert run(*small, "--device=cuda", "--max_iters=20", "--lr_decay_iters=20") == 0
    assert losses(small)[19][0] < losses(small)[0][0]


def test_deterministic_resume_is_exact(small, tmp_path):
    words = (*small, "--device=cuda", "--deterministic=True")
    straight = (*words, f"--out_dir={tmp_path / 'straight'}")
    run(*straight)
    run(*words, "--max_iters=5")
    run(*words, "--init_from=resume")
    assert losses(words) == losses(straight)
