"""A Lightning script; its first argument is a mood of ``sick_digits``, its second how many steps it makes. It knows nothing of Chainrule."""

import sys

import lightning
import sick_digits
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

mood, steps = sys.argv[1], int(sys.argv[2])


class Digits(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.network = sick_digits.network(mood)

    def forward(self, pixels):
        return self.network(pixels)

    def training_step(self, batch, index):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, index):
        self.log("val_accuracy", (self(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=sick_digits.rate(mood))


torch.set_num_threads(1)
lightning.seed_everything(0)
data = TensorDataset(*sick_digits.digits())
trainer = lightning.Trainer(
    accelerator="cpu",
    max_steps=steps,
    max_epochs=100,
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
    check_val_every_n_epoch=3,
    num_sanity_val_steps=1,
)
trainer.fit(Digits(), DataLoader(data, batch_size=64, shuffle=True), DataLoader(data, batch_size=512))
