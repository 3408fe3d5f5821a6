"""Configurations of the Hugging Face Trainer, with tiny models and data in memory."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from transformers import EarlyStoppingCallback

from integrations.trainer_runs import Build

RECORDS = 22
Callbacks = list[transformers.TrainerCallback]


class Sentences(torch.utils.data.Dataset[dict[str, Any]]):
    """Sequences of 3 to 7 tokens with a class."""

    def __init__(self, count: int = RECORDS, *, noise: bool = False, own: bool = False) -> None:
        generator = torch.Generator().manual_seed(count)
        lengths = torch.randint(3, 8, (count,), generator=generator).tolist()
        self.ids = [torch.randint(3, 20, (n,), generator=generator).tolist() for n in lengths]
        self.noise = noise
        self.generator = torch.Generator().manual_seed(5) if own else None

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        ids = list(self.ids[index])
        if self.noise:
            ids[0] = int(torch.randint(3, 20, (1,), generator=self.generator))
        return {"input_ids": ids, "labels": sum(self.ids[index]) % 2}


class Stream(torch.utils.data.IterableDataset[dict[str, Any]]):
    """The same, without a length."""

    def __init__(self, count: int = RECORDS) -> None:
        self.sentences = Sentences(count)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self.sentences[index] for index in range(len(self.sentences)))


def pad(records: list[dict[str, Any]], *, language: bool = False) -> dict[str, torch.Tensor]:
    """A batch of sequences, padded with 0."""
    width = max(len(it["input_ids"]) for it in records)
    ids = torch.tensor([it["input_ids"] + [0] * (width - len(it["input_ids"])) for it in records])
    labels = ids.masked_fill(ids == 0, -100) if language else torch.tensor(
        [it["labels"] for it in records]
    )  # fmt: skip
    return {"input_ids": ids, "attention_mask": (ids > 0).long(), "labels": labels}


def pad_language(records: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """A batch whose labels are its tokens."""
    return pad(records, language=True)


def mask(records: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """A batch with some tokens masked at random, as for masked language models."""
    batch = pad(records)
    hidden = torch.rand(batch["input_ids"].shape) < 0.2
    return {**batch, "input_ids": batch["input_ids"].masked_fill(hidden, 2)}


def classifier(dropout: float = 0.1) -> transformers.BertForSequenceClassification:
    """A BERT of one layer, eight wide."""
    return transformers.BertForSequenceClassification(
        transformers.BertConfig(
            vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=8, max_position_embeddings=8, hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
        )
    )  # fmt: skip


def language_model() -> transformers.GPT2LMHeadModel:
    """A GPT-2 of one layer, eight wide."""
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=20, n_embd=8, n_layer=1, n_head=2, n_positions=8,
            bos_token_id=1, eos_token_id=1,
        )
    )  # fmt: skip


def translator() -> transformers.T5ForConditionalGeneration:
    """A T5 of one layer, eight wide."""
    return transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2,
            decoder_start_token_id=0,  # type: ignore[call-arg]
        )
    )  # fmt: skip


def frozen() -> transformers.BertForSequenceClassification:
    """A classifier whose base is not trained."""
    model = classifier()
    model.bert.requires_grad_(False)
    return model


class ShuffledStream(torch.utils.data.IterableDataset[dict[str, Any]]):
    """Shuffled by Python's random numbers when an epoch begins."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        sentences = Sentences()
        return (sentences[index] for index in random.sample(range(RECORDS), RECORDS))


class LevelledSentences(Sentences):
    """Its tokens depend on a level that a callback raises each epoch."""

    level = 0

    def __getitem__(self, index: int) -> dict[str, Any]:
        it = super().__getitem__(index)
        return {**it, "input_ids": [*it["input_ids"][1:], 3 + self.level % 9]}


class RaisesLevel(transformers.TrainerCallback):
    """Raises the level of the data, and changes weights, when an epoch begins."""

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Raise the level; scale the weights."""
        kwargs["train_dataloader"].dataset.level += 2
        kwargs["model"].classifier.weight.data.mul_(0.9)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Scale the weights."""
        kwargs["model"].classifier.weight.data.mul_(0.99)


class WeightedSampling(transformers.Trainer):
    """Draws records by weight, with a generator that it uses for all epochs."""

    def _get_train_sampler(self, *_: Any) -> torch.utils.data.Sampler[int]:
        return torch.utils.data.WeightedRandomSampler(
            [1.0, 2.0] * (RECORDS // 2), RECORDS, generator=torch.Generator().manual_seed(9)
        )


class UnpreparedLoader(transformers.Trainer):
    """Trains from a DataLoader that accelerate did not prepare."""

    def get_train_dataloader(self) -> Any:
        """A shuffling DataLoader of torch."""
        return torch.utils.data.DataLoader(
            cast(Any, self.train_dataset), 4, shuffle=True, collate_fn=self.data_collator
        )


class Criterion:
    """A loss that counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
        """Cross entropy with a growing weight."""
        self.calls += 1
        return torch.nn.functional.cross_entropy(outputs.logits, labels) * (1 + self.calls / 50)


class WeightedLoss(transformers.Trainer):
    """A Trainer whose loss depends on a count of its own."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.step, self.weights = 0, torch.ones(3)

    def compute_loss(  # type: ignore[override]
        self, model: Any, inputs: Any, **named: Any
    ) -> Any:
        """The loss, with a weight in training."""
        if not model.training:
            return super().compute_loss(model, inputs, **named)
        self.step += 1
        self.weights[self.step % 3] *= 0.9
        return super().compute_loss(model, inputs, **named) * self.weights[0]


class CountsEvents(transformers.TrainerCallback):
    """Changes the weights by its counts of events."""

    def __init__(self) -> None:
        self.counts = {"epochs": 0, "steps": 0, "evaluations": 0}
        self.average: torch.Tensor | None = None

    def on_epoch_begin(self, *_: Any, **__: Any) -> None:
        """Count."""
        self.counts["epochs"] += 1

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Count."""
        self.counts["steps"] += 1

    def on_evaluate(self, *_: Any, **__: Any) -> None:
        """Count."""
        self.counts["evaluations"] += 1

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move the head towards its average, by the counts and the epoch."""
        weight = kwargs["model"].classifier.weight.data
        self.average = weight.clone() if self.average is None else (self.average + weight) / 2
        weight.lerp_(self.average, min(0.9, sum(self.counts.values()) / 100 + state.epoch / 50))


class ShortEpochs(transformers.TrainerCallback):
    """Ends epochs early, and decides when to log and evaluate."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Every fourth step ends its epoch; every third is evaluated."""
        control.should_epoch_stop = state.global_step % 4 == 0
        control.should_evaluate = state.global_step % 3 == 0
        control.should_log = state.global_step % 5 == 0


def accuracy(prediction: Any) -> dict[str, float]:
    """The share of right answers."""
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def make(
    model: Callable[[], Any] = classifier,
    *,
    data: Callable[[], Any] = Sentences,
    collate: Any = pad,
    own: Callable[[], Callbacks] = list,
    trainer: type[transformers.Trainer] = transformers.Trainer,
    given: dict[str, Any] | None = None,
    made: dict[str, Callable[[], Any]] | None = None,
    **settings: Any,
) -> Build:
    """A configuration: a small one with these settings of its TrainingArguments.

    `given` goes to the Trainer unchanged; `made` has functions that build a new object each run.
    """
    generates = trainer is transformers.Seq2SeqTrainer
    arguments = (
        transformers.Seq2SeqTrainingArguments if generates else transformers.TrainingArguments
    )
    defaults = {
        "num_train_epochs": 2, "per_device_train_batch_size": 4, "logging_steps": 3,
        "learning_rate": 0.02, "use_cpu": True, "save_strategy": "no", "report_to": "none",
        "disable_tqdm": True, "per_device_eval_batch_size": 4,
    }  # fmt: skip

    def build(folder: Path, callbacks: Callbacks) -> transformers.Trainer:
        chosen: dict[str, Any] = {**defaults, **settings}
        return trainer(
            model=model(), args=arguments(output_dir=str(folder), **chosen),
            train_dataset=data(), eval_dataset=Sentences(9), data_collator=collate,
            callbacks=[*own(), *callbacks], **(given or {}),
            **{name: build() for name, build in (made or {}).items()},
        )  # fmt: skip

    return build


EVALUATED: dict[str, Any] = {"eval_strategy": "steps", "eval_steps": 2}
BEST: dict[str, Any] = {
    **EVALUATED, "load_best_model_at_end": True, "save_strategy": "steps", "save_steps": 2,
    "metric_for_best_model": "loss",
}  # fmt: skip


def _stopper() -> Callbacks:
    return [EarlyStoppingCallback(early_stopping_patience=2)]


CONFIGURATIONS: dict[str, Build] = {
    "plain": make(),
    "language model": make(language_model, collate=pad_language),
    "evaluation by steps": make(**EVALUATED),
    "evaluation by epochs": make(eval_strategy="epoch"),
    "evaluation on start": make(**EVALUATED, eval_on_start=True),
    "evaluation with a metric": make(**EVALUATED, given={"compute_metrics": accuracy}),
    "evaluation, delayed": make(**EVALUATED, eval_delay=5),
    "early stopping": make(**BEST, own=_stopper, learning_rate=0.3, num_train_epochs=6),
    "early stopping by epochs": make(
        own=_stopper, eval_strategy="epoch", save_strategy="epoch", load_best_model_at_end=True,
        learning_rate=0.5, num_train_epochs=8,
    ),
    "best model": make(**BEST),
    "best model, one kept": make(**BEST, save_total_limit=1),
    "best model saved": make(**{**BEST, "save_strategy": "best"}),
    "save by steps": make(save_strategy="steps", save_steps=4),
    "save by epochs": make(save_strategy="epoch", save_total_limit=1),
    **{
        f"schedule {name}": make(lr_scheduler_type=name, warmup_steps=3)
        for name in ("linear", "cosine", "polynomial", "constant_with_warmup",
                     "cosine_with_restarts", "inverse_sqrt", "constant")
    },
    "plateau": make(
        **EVALUATED, lr_scheduler_type="reduce_lr_on_plateau", metric_for_best_model="loss",
        lr_scheduler_kwargs={"patience": 0}, learning_rate=0.3,
    ),
    "plateau by epochs": make(
        eval_strategy="epoch", lr_scheduler_type="reduce_lr_on_plateau",
        metric_for_best_model="loss", lr_scheduler_kwargs={"patience": 0}, learning_rate=0.3,
    ),
    "grouped by length": make(train_sampling_strategy="group_by_length"),
    "batches rebalanced": make(train_sampling_strategy="batch_rebalance"),
    "in order": make(train_sampling_strategy="sequential"),
    "generation": make(
        translator, trainer=transformers.Seq2SeqTrainer, collate=pad_language, **EVALUATED,
        predict_with_generate=True, generation_max_length=4,
    ),
    "accumulated": make(gradient_accumulation_steps=2, **EVALUATED),
    "accumulated, partial": make(gradient_accumulation_steps=4, num_train_epochs=5),
    "stream": make(data=Stream, max_steps=13),
    "stream, accumulated": make(data=Stream, max_steps=7, gradient_accumulation_steps=4),
    "stream, shuffled": make(data=ShuffledStream, max_steps=13),
    "harder epochs": make(data=LevelledSentences, own=lambda: [RaisesLevel()]),
    "weighted sampler": make(trainer=WeightedSampling),
    "bare loader": make(trainer=UnpreparedLoader),
    "loss with a count": make(made={"compute_loss_func": Criterion}),
    "progress shown": make(disable_tqdm=False, **EVALUATED),
    "greedy schedule": make(
        **EVALUATED, lr_scheduler_type="greedy", metric_for_best_model="loss", learning_rate=0.3,
    ),
    "schedule with a floor": make(
        lr_scheduler_type="cosine_with_min_lr", lr_scheduler_kwargs={"min_lr_rate": 0.1}
    ),
    "warmup, stable, decay": make(
        lr_scheduler_type="warmup_stable_decay", warmup_steps=3,
        lr_scheduler_kwargs={"num_decay_steps": 4},
    ),
    "early stopping on a plateau": make(
        **BEST, own=_stopper, learning_rate=0.3, num_train_epochs=6,
        lr_scheduler_type="reduce_lr_on_plateau",
    ),
    "schedule-free": make(
        optim="schedule_free_adamw", lr_scheduler_type="constant", **EVALUATED
    ),
    "stream with a worker": make(data=Stream, max_steps=5, dataloader_num_workers=1),
    "some steps": make(max_steps=8),
    "half an epoch": make(num_train_epochs=1.5),
    "labels smoothed": make(label_smoothing_factor=0.1),
    "noise on embeddings": make(neftune_noise_alpha=5.0),
    "no incomplete batch": make(dataloader_drop_last=True),
    "one worker": make(dataloader_num_workers=1, num_train_epochs=1),
    "two workers, noise": make(
        data=lambda: Sentences(noise=True), dataloader_num_workers=2, num_train_epochs=2
    ),
    **{
        f"optimizer {name}": make(optim=name)
        for name in ("adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop")
    },
    "frozen": make(frozen),
    "own loss": make(trainer=WeightedLoss, **EVALUATED),
    "own callback": make(own=lambda: [CountsEvents()], **EVALUATED),
    "own callback with a plan": make(own=lambda: [ShortEpochs()], num_train_epochs=4),
    "masked at random": make(collate=mask),
    "masked at random, accumulated": make(collate=mask, gradient_accumulation_steps=3),
    "noise": make(data=lambda: Sentences(noise=True)),
    "noise of its own": make(data=lambda: Sentences(noise=True, own=True)),
    "sampler that draws": make(accelerator_config={"use_seedable_sampler": False}),
    "data seed": make(data_seed=3),
    "tokens counted": make(include_num_input_tokens_seen="all"),
    "bfloat16": make(bf16=True),
    "checkpointed activations": make(activation_checkpointing=True),
    "first step logged": make(logging_first_step=True, logging_strategy="epoch"),
    "model made by the Trainer": make(lambda: None, given={"model_init": lambda: classifier()}),
}  # fmt: skip
