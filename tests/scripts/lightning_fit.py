"""A Lightning script as its users write it, started by torchrun with two processes. It knows nothing of Chainrule."""

import sys

import lightning
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

steps, rate = int(sys.argv[1]), float(sys.argv[2])


class Regression(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.network = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1))

    def training_step(self, batch, index):
        return nn.functional.mse_loss(self.network(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=rate)


torch.set_num_threads(1)
lightning.seed_everything(0)
data = torch.randn(512, 16)
loader = DataLoader(TensorDataset(data, data.sum(1, keepdim=True).sin()), batch_size=16)
trainer = lightning.Trainer(
    accelerator="cpu",
    devices=2,
    strategy="ddp",
    max_steps=steps,
    max_epochs=100,
    logger=False,
    enable_progress_bar=False,
    enable_model_summary=False,
    default_root_dir="outputs",
)
trainer.fit(Regression(), loader)
assert trainer.world_size == 2
