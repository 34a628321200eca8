"""The Hugging Face Trainer with a token-weighted loss, a validation that sums instead of averaging means, and an exact resume.

All of it holds for any number of processes (`processes`), which share out each batch's parts (`parts`).
"""

import math
import signal
from collections.abc import Iterator
from itertools import islice
from typing import Any, ClassVar

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState

from prosemill.console import say
from prosemill.errors import ProsemillError
from prosemill.families import Batch, Family
from prosemill.families.family import IGNORED
from prosemill.tokens.blocks import Blocks
from prosemill.training.checkpoints import Checkpoints
from prosemill.training.loss import sum_over_tokens, validation_nll
from prosemill.training.parts import GradientInOrder, Parts, in_order, seed_part
from prosemill.training.processes import any_process, asked_to_end, from_leader, gather, is_leader, num_processes, rank

NUM_KEPT = 2
"""Newest checkpoints that are kept, beside the best one."""


class BlockDataset(Dataset[torch.Tensor]):
    """Blocks of one split as a map-style dataset: nothing but the memory map is held.

    Args:
        blocks: The split.
        limit: How many blocks to use, spread evenly over the split; None for all.
    """

    def __init__(self, blocks: Blocks, limit: int | None = None) -> None:
        self._blocks = blocks
        self._length = len(blocks) if limit is None else min(limit, len(blocks))

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> torch.Tensor:
        """One block of token ids, [block_size], int64."""
        return torch.from_numpy(self._blocks[index * len(self._blocks) // self._length])


class BlockCollator:
    """Stacks blocks, [block_size] each, and has the model's family make a batch of them."""

    def __init__(self, family: Family, config: Any, end_of_text_id: int, *, documents_stop_attention: bool) -> None:
        self._family, self._config = family, config
        self._end_of_text_id, self._documents_stop_attention = end_of_text_id, documents_stop_attention

    def __call__(self, blocks: list[torch.Tensor]) -> Batch:
        """What the model's `forward` takes, with `labels`; of no blocks, nothing."""
        if not blocks:
            return {}
        stop = self._documents_stop_attention
        return self._family.pack(torch.stack(blocks), self._config, self._end_of_text_id, documents_stop_attention=stop)


class Remembering(TrainerCallback, ExportableState):
    """A callback some of whose attributes are kept in checkpoints and are as they were when a run goes on from one."""

    kept: ClassVar[tuple[str, ...]]
    """Names of the attributes; their values are plain ones."""

    def state(self) -> dict[str, Any]:
        """What Trainer writes into a checkpoint's state file."""
        return {"args": {}, "attributes": {name: getattr(self, name) for name in self.kept}}

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Take up what the state says; in a run that begins, that is what `state` just told it."""
        super().on_train_begin(args, state, control)
        stored: Any = state.stateful_callbacks
        for name, value in stored[type(self).__name__]["attributes"].items():
            setattr(self, name, value)


class TokenWeightedTrainer(Trainer):
    """Trainer whose losses are sums over tokens divided by the number of tokens, and whose runs go on exactly where they were cut.

    Several processes train the same model as one, bit for bit, with as many threads each. They do not use `DistributedDataParallel`: it
    averages gradients in an order that depends on their number.

    Args:
        tokens_per_byte: Text tokens over UTF-8 bytes of the validation split, to turn nats per token into bits per byte.
        end_of_text_id: The token that is no text and does not count towards bits per byte.
        checkpoints: Where the run's checkpoints lie.
        arguments: What Trainer takes.
    """

    def __init__(self, *, tokens_per_byte: float, end_of_text_id: int, checkpoints: Checkpoints, **arguments: Any) -> None:
        super().__init__(compute_loss_func=_loss_of_outputs, **arguments)
        # The model would compute a loss of its own from these, and scale it by its own idea of the batch.
        self.model_accepts_loss_kwargs = False
        self._tokens_per_byte, self._end_of_text_id, self._checkpoints = tokens_per_byte, end_of_text_id, checkpoints
        assert isinstance(self.train_dataset, BlockDataset)
        self._blocks = self.train_dataset
        self._parts = Parts(len(self._blocks), part_size=self.args.per_device_train_batch_size, seed=self.args.seed)
        self._gradient: GradientInOrder | None = None
        self._turn = self._num_turns = 0  # of this process in the batch
        self._mean_loss = 0.0  # of the steps since the last log
        self.add_callback(_Progress(self))

    def go_on(self) -> None:
        """Train from the newest whole checkpoint, or else from the beginning, to the end.

        Raises:
            KeyboardInterrupt: the process was sent SIGTERM; a checkpoint of the last step is written.
        """
        step = from_leader(self._resumable_step() if is_leader() else None)
        if step is not None and is_leader():
            say(f"going on from the checkpoint of step {step}")
        self.args.eval_on_start = step is None  # else it is measured already
        with _SaveOnSigterm() as callback:
            self.add_callback(callback)
            self.train(resume_from_checkpoint=None if step is None else str(self._checkpoints.path(step)))
            if any_process(callback.is_asked):  # after the last checkpoint
                raise KeyboardInterrupt

    def _resumable_step(self) -> int | None:
        """The step of the newest checkpoint that is whole and whose best one is there too."""
        while (step := self._checkpoints.newest()) is not None:
            best = TrainerState.load_from_json(str(self._checkpoints.path(step) / TRAINER_STATE_NAME)).best_global_step
            if not best or best in self._checkpoints.steps():
                break
            self._checkpoints.delete(step, because=f"the best one, of step {best}, is gone")
        return step

    @property
    def block_size(self) -> int:
        """Tokens of a block."""
        return len(self._blocks[0])

    @property
    def num_blocks(self) -> int:
        """Blocks trained on so far; an epoch's last batch may hold fewer than the others."""
        num_blocks = len(self._blocks)
        batch_size = self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps * num_processes()
        epochs, steps = divmod(self.state.global_step, math.ceil(num_blocks / batch_size))
        return epochs * num_blocks + steps * batch_size

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The parts of every batch that this process computes."""
        return self._load(self._blocks, self._parts)

    def _load(self, dataset: BlockDataset, parts: Parts) -> DataLoader[Any]:
        return DataLoader(dataset, batch_sampler=parts, collate_fn=self.data_collator, pin_memory=self.args.dataloader_pin_memory)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device
    ) -> tuple[list[Batch], torch.Tensor | int | None]:
        """The parts of one batch that this process computes, and how many tokens the whole batch predicts."""
        parts = list(islice(epoch_iterator, num_batches))
        self._turn, self._num_turns = 0, len(parts)
        num_tokens = sum(int(part["labels"].ne(IGNORED).sum()) for part in parts if part)
        return parts, gather(torch.tensor(num_tokens)).sum().to(device)

    def training_step(self, model: nn.Module, inputs: Batch, num_items_in_batch: torch.Tensor | int | None = None) -> torch.Tensor:
        """Compute a part, if there is one for this process, and share what came of it."""
        seed_part(self.args.seed, self.state.global_step, self._turn * num_processes() + rank())
        loss = torch.zeros((), device=self.args.device)
        if inputs:
            loss = super().training_step(model, inputs, num_items_in_batch)
        if num_processes() > 1:
            self._share_gradient(model)
        self._turn += 1
        *earlier, last = in_order(loss[None]).unbind()
        for part in earlier:
            self._tr_loss += part
        return last  # which Trainer adds itself

    def _share_gradient(self, model: nn.Module) -> None:
        self._gradient = self._gradient or GradientInOrder(model)
        self._gradient.add()
        if self._turn == self._num_turns - 1:
            self._gradient.finish()

    def evaluate(self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Validation loss (nats per token, end-of-text counted) and bits per byte (text alone), both token-weighted."""
        assert ignore_keys is None
        model = self.model
        assert model is not None
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        assert isinstance(dataset, BlockDataset)
        model.eval()
        totals = []
        for part in self._load(dataset, Parts(len(dataset), part_size=self.args.per_device_eval_batch_size)):
            with self.accelerator.autocast():
                totals.append(validation_nll(model, self._prepare_inputs(part), self._end_of_text_id) if part else (0.0, 0, 0.0, 0))
        model.train()
        start = torch.zeros(4, dtype=torch.float64)
        nll, num_tokens, text_nll, num_text_tokens = sum(in_order(torch.tensor(totals, dtype=torch.float64)), start).tolist()
        metrics = {
            f"{metric_key_prefix}_loss": nll / num_tokens,
            f"{metric_key_prefix}_bits_per_byte": text_nll / num_text_tokens * self._tokens_per_byte / math.log(2),
        }
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _wrap_model(self, model: nn.Module, training: bool = True, dataloader: Any = None) -> nn.Module:
        """The model under autocast and nothing else: the processes' gradients are added here."""
        if num_processes() == 1:
            return super()._wrap_model(model, training, dataloader)
        prepared: nn.Module = self.accelerator.prepare_model(model, evaluation_mode=True)
        prepared._is_accelerate_prepared = True  # type: ignore[assignment]  # else it would be wrapped when it is prepared again
        return prepared

    def _maybe_log_save_evaluate(self, tr_loss: torch.Tensor, *arguments: Any, **options: Any) -> None:
        """As Trainer's own; the mean that it takes of all processes' losses, which are the same, may be rounded."""
        self._mean_loss = tr_loss.item() / max(1, self.state.global_step - self._globalstep_last_logged)
        super()._maybe_log_save_evaluate(tr_loss, *arguments, **options)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As Trainer's own, with the loss that is not rounded."""
        super().log({**logs, "loss": self._mean_loss} if "loss" in logs else logs, start_time)

    def _run_epoch(self, **arguments: Any) -> None:  # type: ignore[override]  # Trainer names them all
        self._parts.epoch = arguments["epoch"]
        if not self.control.should_training_stop:  # the checkpoint of a run's last step has nothing left to train
            super()._run_epoch(**arguments)  # type: ignore[no-untyped-call]

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """As Trainer's own, which writes in place: a kill in it leaves a checkpoint that resumes wrongly or not at all."""
        if not is_leader():
            return
        state, step = self.state, self.state.global_step
        if state.best_global_step:
            state.best_model_checkpoint = str(self._checkpoints.path(state.best_global_step))
        remembered: Any = {type(each).__name__: each.state() for each in self.callback_handler.callbacks if isinstance(each, Remembering)}
        state.stateful_callbacks = remembered
        with self._checkpoints.writing(step) as folder:
            self.save_model(str(folder), _internal_call=True)
            self._save_optimizer_and_scheduler(str(folder))
            self._save_scaler(str(folder))
            state.save_to_json(str(folder / TRAINER_STATE_NAME))
        self._checkpoints.keep({*sorted(self._checkpoints.steps())[-NUM_KEPT:], state.best_global_step or step})

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Nothing is drawn but in a part, which is seeded alone; Trainer's own goes on with a line in the log where a state is missing."""

    def _load_best_model(self) -> None:
        """As Trainer's own, which only warns where there is nothing to load, and leaves the last weights for the best."""
        if not is_leader():  # it may be gone before another process has read it
            return
        best = self.state.best_global_step
        assert best is not None
        fault = self._checkpoints.fault(best)
        if fault is not None:
            raise ProsemillError(f"the best checkpoint {self._checkpoints.path(best)} is not whole ({fault}): run the same command again")
        super()._load_best_model()


class _SaveOnSigterm(TrainerCallback):
    """While its block runs in the main thread: on SIGTERM save a checkpoint after the step under way, then raise `KeyboardInterrupt`.

    A machine that is about to be taken away sends it, and a stage whose DVC was killed sends it to itself. All processes agree on the step.
    """

    def __init__(self) -> None:
        self._got_sigterm = self._are_asked = False

    @property
    def is_asked(self) -> bool:
        """Whether this process was sent SIGTERM, or what started it was."""
        return self._got_sigterm or asked_to_end()

    def __enter__(self) -> "_SaveOnSigterm":
        self._before = signal.signal(signal.SIGTERM, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGTERM, self._before)

    def _ask(self, *_: object) -> None:
        self._got_sigterm = True

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._are_asked = any_process(self.is_asked)
        control.should_save = control.should_save or self._are_asked

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self._are_asked:
            if is_leader():
                say(f"asked to end (SIGTERM): the checkpoint of step {state.global_step} is saved")
            raise KeyboardInterrupt


class _Progress(Remembering):
    """What Trainer forgets: the loss since the last log, and whether the run has come to its end."""

    kept = ("loss", "last_log", "has_ended")

    def __init__(self, trainer: TokenWeightedTrainer) -> None:
        self._trainer = trainer

    @property
    def loss(self) -> float:
        pending = getattr(self._trainer, "_tr_loss", None)
        return 0.0 if pending is None else float(pending)

    @loss.setter
    def loss(self, value: float) -> None:
        self._trainer._tr_loss.fill_(value)

    @property
    def last_log(self) -> int:
        return getattr(self._trainer, "_globalstep_last_logged", 0)

    @last_log.setter
    def last_log(self, value: int) -> None:
        self._trainer._globalstep_last_logged = value

    @property
    def has_ended(self) -> bool:
        return self._trainer.control.should_training_stop

    @has_ended.setter
    def has_ended(self, value: bool) -> None:
        self._trainer.control.should_training_stop = value


class EvaluateAtTheEnd(TrainerCallback):
    """Measures and saves after the last step too, where the number of steps is no multiple of the interval."""

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step >= state.max_steps:
            control.should_evaluate = control.should_save = True


def _loss_of_outputs(outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None) -> torch.Tensor:
    return sum_over_tokens(outputs["logits"], labels, num_items_in_batch)
