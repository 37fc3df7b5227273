"""A LightningModule with one learning rate per block type, its scheduler, and every block's rate in the log.

python examples/lightning_module.py [FOLDER]
"""

import sys

import lightning
import torch
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger
from torch.optim.lr_scheduler import LambdaLR
from transformers import LlamaConfig, LlamaForCausalLM

from blockwise.blocks import param_groups
from blockwise.schedules import rate_lambdas


class Model(lightning.LightningModule):
    def __init__(self, config):
        super().__init__()
        self.llama = LlamaForCausalLM(config)

    def training_step(self, ids, batch_index):
        return self.llama(input_ids=ids, labels=ids).loss

    def configure_optimizers(self):
        groups = [group | {"name": group["block"]} for group in param_groups(self, lr=1e-3, weight_decay=0.1)]
        optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95))
        scheduler = LambdaLR(optimizer, rate_lambdas(groups, floor=1e-4, warmup=4, end=20))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


lightning.seed_everything(0)
config = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
loader = torch.utils.data.DataLoader(torch.randint(64, (80, 16)), batch_size=4)
logger = CSVLogger(sys.argv[1] if sys.argv[1:] else "out/lightning")
trainer = lightning.Trainer(max_steps=20, log_every_n_steps=5, logger=logger, callbacks=[LearningRateMonitor("step")])
trainer.fit(Model(config), loader)
