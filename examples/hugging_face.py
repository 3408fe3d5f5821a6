"""Hugging Face Trainer: one callback makes Trainer.train survive."""

import torch
from model import LanguageModel
from place import place
from text import Text
from transformers import Trainer, TrainingArguments

from plinius.integrations.transformers import MirrorCallback

here = place("hugging_face", iterations=100)
torch.manual_seed(0)

arguments = TrainingArguments(
    output_dir=str(here.region.parent / "hugging_face"),
    max_steps=here.iterations,
    per_device_train_batch_size=16,
    learning_rate=0.001,
    use_cpu=True,
    save_strategy="no",
    report_to="none",
    disable_tqdm=True,
)
trainer = Trainer(
    LanguageModel(),
    arguments,
    train_dataset=Text(64),
    callbacks=[MirrorCallback(here.region, here.key)],
)
trainer.train()
print(f"ended after step {trainer.state.global_step}")
