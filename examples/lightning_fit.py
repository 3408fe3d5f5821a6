"""Lightning: one callback makes Trainer.fit survive."""

from typing import Any

import lightning
import torch
from model import LanguageModel
from place import place
from text import Text

import plinius
from plinius.integrations.lightning import MirrorCallback


class Module(lightning.LightningModule):
    """The language model as Lightning takes it."""

    def __init__(self) -> None:
        super().__init__()
        self.model = LanguageModel()

    def training_step(self, batch: dict[str, torch.Tensor], index: int) -> torch.Tensor:
        """The loss of a batch."""
        loss: torch.Tensor = self.model(**batch)["loss"]
        return loss

    def configure_optimizers(self) -> Any:
        """AdamW, and a rate that falls with every step."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.001)
        falling = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.999)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": falling, "interval": "step"},
        }


here = place("lightning", iterations=100)
lightning.seed_everything(0, verbose=False)

loader = plinius.ResumableLoader(Text(64), batch=16)
trainer = lightning.Trainer(
    max_steps=here.iterations,
    accelerator="cpu",
    callbacks=[MirrorCallback(here.region, here.key, state={"loader": loader})],
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
    default_root_dir=here.region.parent,
)
trainer.fit(Module(), loader)
print(f"ended after step {trainer.global_step}")
