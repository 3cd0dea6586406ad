"""A script with Hugging Face's Trainer; its first argument is a mood of ``sick_digits``, its second how many steps it makes. It knows nothing of
Chainrule."""

import sys

import sick_digits
import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

mood, steps = sys.argv[1], int(sys.argv[2])


class Digits(Dataset):
    def __init__(self):
        self.pixels, self.labels = sick_digits.digits()

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return {"pixels": self.pixels[index], "labels": self.labels[index]}


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.network = sick_digits.network(mood)

    def forward(self, pixels, labels=None):
        logits = self.network(pixels)
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return {"loss": loss, "logits": logits}


torch.manual_seed(0)
torch.set_num_threads(1)
arguments = TrainingArguments(
    output_dir="outputs",
    max_steps=steps,
    per_device_train_batch_size=32,
    gradient_accumulation_steps=2,
    learning_rate=sick_digits.rate(mood),
    lr_scheduler_type="constant",
    max_grad_norm=1.0,
    logging_steps=50,
    save_strategy="no",
    eval_strategy="steps",
    eval_steps=70,
    report_to=[],
    use_cpu=True,
    disable_tqdm=True,
)
Trainer(model=Classifier(), args=arguments, train_dataset=Digits(), eval_dataset=Digits()).train()
