"""Hugging Face Trainer: a callback that mirrors the run of a Trainer, and resumes it.

trainer = Trainer(model, arguments, train_dataset=..., callbacks=[MirrorCallback(path, key)])
trainer.train()
"""

from plinius.integrations.transformers.callback import MirrorCallback

__all__ = ["MirrorCallback"]
