"""What is written down while a model trains: losses, times, samples; and the files a person looks at afterwards."""

import csv
import math
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from transformers import EarlyStoppingCallback, PreTrainedTokenizerFast, TrainerControl, TrainerState, TrainingArguments

from prosemill.console import progress
from prosemill.errors import ProsemillError
from prosemill.families import Family
from prosemill.params import Train
from prosemill.tracking import Run
from prosemill.training.throughput import synchronize
from prosemill.training.trainer import Remembering

Record = dict[str, float]


class Sampler:
    """Continues fixed prompts greedily, each as the beginning of a document.

    Args:
        family: The model's family.
        tokenizer: The model's tokenizer.
        end_of_text_id: Marks where a document begins or an input ends, as the family feeds it.
        prompts: What to continue.
        num_tokens: Longest continuation, in tokens.
    """

    def __init__(
        self, family: Family, tokenizer: PreTrainedTokenizerFast, end_of_text_id: int, prompts: Sequence[str], num_tokens: int
    ) -> None:
        self._family, self._tokenizer, self._end_of_text_id = family, tokenizer, end_of_text_id
        self._prompts, self._num_tokens = prompts, num_tokens

    @torch.no_grad()
    def sample(self, model: Any) -> list[dict[str, str]]:
        """One row per prompt: `prompt` and `continuation` (without the prompt)."""
        was_training = model.training
        model.eval()
        rows = [{"prompt": prompt, "continuation": self._continue(model, prompt)} for prompt in self._prompts]
        model.train(was_training)
        return rows

    def _continue(self, model: Any, prompt: str) -> str:
        batch = self._family.prompt([self._tokenizer.encode(prompt, add_special_tokens=False)], self._end_of_text_id)
        output = model.generate(
            **{name: value.to(model.device) for name, value in batch.items()},
            max_new_tokens=self._num_tokens,
            do_sample=False,
            use_cache=True,
            eos_token_id=self._end_of_text_id,
            pad_token_id=self._end_of_text_id,
        )
        return str(self._tokenizer.decode(output[0, self._family.num_given(batch) :], skip_special_tokens=True))


class StopEarly(Remembering, EarlyStoppingCallback):
    """Transformers' own, which forgets in a kill for how long nothing has become better."""

    kept = ("early_stopping_patience_counter",)


class Recorder(Remembering):
    """Trainer callback that collects and tracks losses, step times and samples, and shows progress.

    Attributes:
        run: The tracked run.
        training: One record per logged step: `step`, `train_loss` (nats per token), `learning_rate`, `grad_norm`.
        validation: One record per measurement: `step`, `validation_loss` (nats per token), `validation_bits_per_byte`; the first at step 0.
        samples: One row per prompt and round: `step`, `prompt`, `continuation`.
        step_seconds: Time spent in optimiser steps, without measurements and samples.
    """

    kept = ("training", "validation", "samples", "step_seconds")

    def __init__(self, section: Train, run: Run, sampler: Sampler) -> None:
        self.run = run
        self._section, self._sampler = section, sampler
        self.training: list[Record] = []
        self.validation: list[Record] = []
        self.samples: list[dict[str, str | int]] = []
        self.step_seconds = 0.0
        self._step_start = 0.0
        self._stack = ExitStack()

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def best(self) -> Record:
        """The measurement with the lowest validation loss after step 0."""
        return min(self.validation[1:], key=lambda record: record["validation_loss"])

    @property
    def best_step(self) -> int:
        """Optimiser step of the best measurement."""
        return int(self.best["step"])

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        super().on_train_begin(args, state, control)
        self._bar = self._stack.enter_context(progress("train", total=state.max_steps, unit="steps"))
        self._bar.advance(state.global_step)

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        synchronize(args.device)
        self._step_start = time.perf_counter()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        synchronize(args.device)
        self.step_seconds += time.perf_counter() - self._step_start
        self._bar.advance(note=self._note())

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any) -> None:
        if "loss" not in logs:
            return
        if not math.isfinite(logs["loss"]):
            raise ProsemillError(
                f"the training loss is {logs['loss']} at step {state.global_step}: lower train.learning_rate or set train.precision to fp32"
            )
        record = {"train_loss": logs["loss"], "learning_rate": logs["learning_rate"], "grad_norm": logs["grad_norm"]}
        self.training.append({"step": state.global_step, **record})
        self.run.log_metrics(record, step=state.global_step)

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metrics: Any = None, model: Any = None, **_: Any
    ) -> None:
        record = {"validation_loss": metrics["eval_loss"], "validation_bits_per_byte": metrics["eval_bits_per_byte"]}
        self.validation.append({"step": state.global_step, **record})
        self.run.log_metrics(record, step=state.global_step)
        if state.global_step % self._section.sampling_interval == 0 or state.global_step >= state.max_steps:
            self._sample(model, state.global_step)

    def _sample(self, model: Any, step: int) -> None:
        rows: list[dict[str, str | int]] = [{"step": step, **row} for row in self._sampler.sample(model)]
        self.samples += rows
        self.run.log_table("training_samples", rows)

    def _note(self) -> str:
        parts = [f"loss {self.training[-1]['train_loss']:.3f}"] if self.training else []
        parts += [f"validation {self.validation[-1]['validation_bits_per_byte']:.4f} bits per byte"] if self.validation else []
        return ", ".join(parts)


def write_curves(recorder: Recorder, reports: Path) -> None:
    """Write `train_loss.csv`, `validation_loss.csv` and `loss_curve.png`."""
    reports.mkdir(parents=True, exist_ok=True)
    _write_csv(reports / "train_loss.csv", ["step", "train_loss", "learning_rate", "grad_norm"], recorder.training)
    _write_csv(reports / "validation_loss.csv", ["step", "validation_loss", "validation_bits_per_byte"], recorder.validation)
    _draw_curves(recorder, reports / "loss_curve.png")


def write_samples(recorder: Recorder, reports: Path) -> None:
    """Write `training_samples.csv`: how the continuations of the fixed prompts changed."""
    _write_csv(reports / "training_samples.csv", ["step", "prompt", "continuation"], recorder.samples)


def _write_csv(path: Path, columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _draw_curves(recorder: Recorder, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(
        [row["step"] for row in recorder.training], [row["train_loss"] for row in recorder.training], alpha=0.5, label="training batch"
    )
    steps, losses = zip(*[(row["step"], row["validation_loss"]) for row in recorder.validation], strict=True)
    axes.plot(steps, losses, marker="o", linewidth=2, label="validation")
    axes.axvline(recorder.best_step, linestyle=":", color="grey", label=f"best checkpoint (step {recorder.best_step})")
    axes.set(xlabel="optimiser step", ylabel="loss (nats per token)", title="Loss while training")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=110, metadata={"Software": None})
