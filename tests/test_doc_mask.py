"""doc_mask: a document in a sequence is computed as if it were alone; runs with it, and who may have them."""

from itertools import pairwise

import helpers
import numpy as np
import pytest
import torch
from conftest import losses, metrics, out_dir, run
from helpers import every_kind

import sample
from blockwise import UserError
from blockwise.checkpoint import load_checkpoint
from blockwise.data.writing import write_dataset
from blockwise.files import GPT2
from blockwise.loader import Dataset
from blockwise.losses import mean_cross_entropy, training_loss
from blockwise.tokenizer import BYTES
from configurator import configure
from model import Transformer, largest_logits

END = 7
SHAPE = dict(vocab_size=31, n_embd=16, n_inner=24, doc_end=END)
MORE = {"gpt2": {}, "llama": dict(qk_norm=True, logit_softcap=3.0, z_loss=0.1), "grouped": {}}


def make(kind, **options):
    return helpers.make(kind, **{**SHAPE, **MORE[kind], **options})


def documents():
    """Sequences (2, 16) with an end at the start, two in a row, one at the end; none in the other."""
    ids = torch.randint(8, 31, (2, 17), generator=torch.Generator().manual_seed(1))
    ids[0, [0, 5, 6, 15]] = END
    return ids[:, :-1], ids[:, 1:]


def cut(x):
    """[(row, first, past the last)] of the documents in x, each with its end."""
    parts = []
    for row in range(len(x)):
        edges = [0, *(i + 1 for i in range(x.size(1)) if x[row, i] == END and i + 1 < x.size(1)), x.size(1)]
        parts += [(row, a, b) for a, b in pairwise(edges)]
    return parts


@every_kind
@pytest.mark.parametrize("training", [False, True])
def test_documents_are_as_if_run_separately(kind, training):
    """Logits, loss and gradient: the target behind an end counts nowhere. Rotary angles are made in float32."""
    exact = dict(rtol=0, atol=1e-11 if kind == "gpt2" else 1e-6)
    (x, y), model, plain = documents(), make(kind), make(kind, doc_end=None)
    parts = cut(x)
    assert [(a, b) for row, a, b in parts if row == 0] == [(0, 1), (1, 6), (6, 7), (7, 16)]
    logits = model(x)
    total, count = 0.0, 0
    for row, a, b in parts:
        torch.testing.assert_close(logits[row, a:b], plain(x[row : row + 1, a:b])[0], **exact)
        n = (b - a) - int(x[row, b - 1] == END)
        if n:
            model_part = plain.train(training)(x[row : row + 1, a : a + n], y[row : row + 1, a : a + n])
            total, count = total + n * model_part, count + n
    assert count == 32 - 4
    loss = model.train(training)(x, y)
    torch.testing.assert_close(loss, total / count, **exact)
    loss.backward()
    (total / count).backward()
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, **exact)
    assert not torch.allclose(loss, plain(x, y), atol=1e-3)


def test_nothing_crosses_an_end():
    """By gradient: a logit depends on the embeddings of its own document alone."""
    model, (x, _) = make("llama"), documents()
    embedded = []
    model.tok_emb.register_forward_hook(lambda module, args, out: embedded.append(out))
    logits = model(x)
    grad = torch.autograd.grad(logits[0, 11].sum(), embedded)[0]  # (2, 16, 16)
    assert grad.abs().amax(dim=2).nonzero().tolist() == [[0, t] for t in range(7, 12)]


def test_activation_checkpointing_and_compile_are_the_same():
    (x, y), model = documents(), make("gpt2").train()
    loss = model(x, y)
    loss.backward()
    grads = [p.grad.clone() for p in model.parameters()]
    for change in ("checkpointing", "compile"):
        model.zero_grad()
        model.activation_checkpointing = change == "checkpointing"
        other = torch.compile(model, backend="aot_eager", fullgraph=True) if change == "compile" else model
        other(x, y).backward()
        for p, grad in zip(model.parameters(), grads, strict=True):
            torch.testing.assert_close(p.grad, grad, rtol=0, atol=1e-12)


def test_generation_is_unaffected():
    model, plain, x = make("gpt2"), make("gpt2", doc_end=None), documents()[0]
    for ours, theirs in zip(model.generate(x, 20, 0), plain.generate(x, 20, 0), strict=True):
        assert torch.equal(ours, theirs)


def test_the_largest_logits_are_of_what_may_be_seen():
    q, k = torch.randn(2, 4, 6, 8), torch.randn(2, 2, 6, 8)
    mask = torch.eye(6, dtype=torch.bool).expand(2, 1, 6, 6)
    largest = (q * k.repeat_interleave(2, dim=1)).sum(-1).amax((0, 2)) / 8**0.5
    torch.testing.assert_close(largest_logits(q, k, mask), largest)


@pytest.mark.parametrize("loss", [training_loss, mean_cross_entropy])
@pytest.mark.parametrize("z_loss", [0.0, 0.1])
def test_the_loss_of_counted_positions(loss, z_loss, monkeypatch):
    """Equal to that of these positions alone, over pieces; 0 if none counts; everything, as without."""
    monkeypatch.setattr("blockwise.losses.LOSS_ROWS", 4)
    torch.manual_seed(0)
    x, matrix = torch.randn(11, 5, dtype=torch.float64), torch.randn(9, 5, dtype=torch.float64)
    targets, counted = torch.randint(9, (11,)), torch.arange(11) % 3 != 0
    counted[4:8] = False  # a piece without any

    def of(*args):
        a, b = x[args[0]].requires_grad_(), matrix.clone().requires_grad_()
        value = loss(a, b, targets[args[0]], 2.0, z_loss, *args[1:])
        return value.detach(), *torch.autograd.grad(value, (a, b))

    every = slice(None)
    value, dx, dmatrix = of(every, counted)
    expected = of(counted)
    torch.testing.assert_close(value, expected[0])
    torch.testing.assert_close(dx[counted], expected[1])
    torch.testing.assert_close(dmatrix, expected[2])
    assert not dx[~counted].any()
    nothing = of(every, torch.zeros(11, dtype=torch.bool))
    assert not any(z.any() for z in nothing)
    for ours, theirs in zip(of(every, torch.ones(11, dtype=torch.bool)), of(every), strict=True):
        torch.testing.assert_close(ours, theirs)


# Runs


@pytest.fixture
def marked(small, tmp_path):
    """`small` on texts of a few words, each ended by byte 0, which counts as the end-of-text token."""
    rng = np.random.default_rng(0)
    words = b"the cat sat on a mat and the dog ate that hat".split()
    text = b"".join(b" ".join(words[i] for i in rng.integers(12, size=rng.integers(1, 6))) + b"\0" for _ in range(900))
    ids = {"train": list(text[:9000]), "val": list(text[9000:11000])}
    write_dataset(tmp_path / "data" / "marked", ids, BYTES | {"end_of_text": 0}, "made up")
    return (*small, f"--data_dir={tmp_path / 'data'}", "--dataset=marked", "--doc_mask=True")


@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
def test_a_run_with_the_mask(marked, tmp_path, model_type, capsys):
    """Resumed exactly, evaluated with the mask, other than without; it samples as any other."""
    words = (*marked, f"--model_type={model_type}", "--sharpness_interval=4", "--curvature_interval=4")
    straight, without = (*words, f"--out_dir={tmp_path / 'a'}"), (*words, f"--out_dir={tmp_path / 'b'}")
    run(*straight)
    run(*words, "--max_iters=5")
    run(*words, "--init_from=resume")
    assert losses(words) == losses(straight)
    assert metrics(words)[4]["sharpness/QK"] > 0
    run(*without, "--doc_mask=False")
    assert losses(without)[0][0] != losses(words)[0][0] and losses(without)[0][1] != losses(words)[0][1]
    checkpoint = load_checkpoint(out_dir(words) / "ckpt_00000008.pt")
    assert checkpoint["model_config"]["doc_end"] == 0
    model = Transformer.from_checkpoint(checkpoint).eval()
    split = Dataset.open(tmp_path / "data", "marked", 16).val
    starts = np.linspace(0, split.tokens - 17, 8).astype(np.int64)
    with torch.no_grad():
        batches = [model(*split.sequences(starts[i : i + 2], 16)).item() for i in range(0, 8, 2)]
    assert metrics(words)[8]["val/loss"] == pytest.approx(np.mean(batches), rel=1e-6)
    options = (f"--out_dir={out_dir(words)}", "--device=cpu", "--num_samples=1", "--max_new_tokens=30")
    sample.main(configure(sample.SampleConfig, options, "")[0])


def test_without_an_end_of_text_it_is_refused(small):
    with pytest.raises(UserError, match="no end-of-text token"):
        run(*small, "--doc_mask=True")
    assert not list(out_dir(small).glob("[!.]*"))


def test_the_end_of_text_of_a_data_set(data_dir):
    data = Dataset.open(data_dir, "tiny", 16)
    assert data.end_of_text is None
    for tokenizer, end in ((GPT2, 50256), (BYTES | {"end_of_text": 0}, 0), ({"tokenizer": "x", "end_of_text": 5}, 5)):
        data.tokenizer = tokenizer
        assert data.end_of_text == end
