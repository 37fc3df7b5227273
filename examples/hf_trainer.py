"""transformers.Trainer with one learning rate per block type: its own schedule, every block's rate in the log, resume.

python examples/hf_trainer.py [OUT_DIR]               # again: continues from the newest checkpoint in OUT_DIR
accelerate launch examples/hf_trainer.py [OUT_DIR]    # several processes
"""

import sys

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from blockwise.blocks import param_groups


class BlockwiseTrainer(Trainer):
    def create_optimizer(self, model=None):
        lr, decay, betas = self.args.learning_rate, self.args.weight_decay, (self.args.adam_beta1, self.args.adam_beta2)
        self.optimizer = torch.optim.AdamW(param_groups(model or self.model, lr, weight_decay=decay), betas=betas)
        return self.optimizer

    def log(self, logs, start_time=None):
        """Trainer logs the first group's rate as `learning_rate`; these are the rates of the next step."""
        super().log({**logs, **{f"lr/{g['block']}": g["lr"] for g in self.optimizer.param_groups}}, start_time)


torch.manual_seed(0)
# from_pretrained(...) in its place for a model of yours; for Q, K and V in one matrix, as GPT-2's: split_qkv(model)
config = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
model = LlamaForCausalLM(config)
dataset = [{"input_ids": row, "labels": row} for row in torch.randint(64, (64, 16))]

out_dir = sys.argv[1] if sys.argv[1:] else "out/hf_trainer"
args = TrainingArguments(
    out_dir, max_steps=20, learning_rate=1e-3, weight_decay=0.1, lr_scheduler_type="cosine", warmup_steps=4,
    save_steps=10, logging_steps=5, report_to="none", disable_tqdm=True,
)  # fmt: skip
trainer = BlockwiseTrainer(model, args, train_dataset=dataset)
trainer.train(resume_from_checkpoint=get_last_checkpoint(out_dir))
