"""Lightning: a callback that mirrors the run of a Trainer, and resumes it.

trainer = Trainer(callbacks=[MirrorCallback("run.region", key, state={"loader": loader})])
trainer.fit(module, loader)
"""

from plinius.integrations.lightning.callback import MirrorCallback

__all__ = ["MirrorCallback"]
