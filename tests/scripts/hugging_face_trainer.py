"""A script with Hugging Face's Trainer, as its users write it: a tiny language model from scratch. It knows nothing of Chainrule."""

import sys

import torch
from torch.utils.data import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

steps, rate = int(sys.argv[1]), float(sys.argv[2])


class Counting(Dataset):
    def __len__(self):
        return 256

    def __getitem__(self, index):
        tokens = (torch.arange(16) + index) % 32
        return {"input_ids": tokens, "labels": tokens}


torch.set_num_threads(1)
model = GPT2LMHeadModel(GPT2Config(vocab_size=32, n_positions=16, n_embd=16, n_layer=2, n_head=2))
arguments = TrainingArguments(
    output_dir="outputs",
    max_steps=steps,
    per_device_train_batch_size=4,
    learning_rate=rate,
    gradient_accumulation_steps=2,
    logging_steps=5,
    save_strategy="no",
    report_to=["kubeflow"] if "--kubeflow" in sys.argv else "all",
    use_cpu=True,
    disable_tqdm=True,
)
Trainer(model=model, args=arguments, train_dataset=Counting()).train()
