"""The Hugging Face Trainer with a token-weighted loss and a validation that sums instead of averaging means."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from prosemill.families import Batch, Family
from prosemill.families.family import IGNORED
from prosemill.tokens.blocks import Blocks
from prosemill.training.loss import sum_over_tokens, validation_nll


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
        """What the model's `forward` takes, with `labels`."""
        stop = self._documents_stop_attention
        return self._family.pack(torch.stack(blocks), self._config, self._end_of_text_id, documents_stop_attention=stop)


class TokenWeightedTrainer(Trainer):
    """Trainer whose training loss and validation loss are sums over tokens divided by the number of tokens.

    Args:
        tokens_per_byte: Text tokens over UTF-8 bytes of the validation split, to turn nats per token into bits per byte.
        end_of_text_id: The token that is no text and does not count towards bits per byte.
        arguments: What Trainer takes.

    Attributes:
        num_blocks: Blocks trained on so far; an epoch's last batch may hold fewer than the others.
    """

    def __init__(self, *, tokens_per_byte: float, end_of_text_id: int, **arguments: Any) -> None:
        super().__init__(compute_loss_func=_loss_of_outputs, **arguments)
        # The model would compute a loss of its own from these, and scale it by its own idea of the batch.
        self.model_accepts_loss_kwargs = False
        self._tokens_per_byte, self._end_of_text_id = tokens_per_byte, end_of_text_id
        self.num_blocks = 0

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device
    ) -> tuple[list[Batch], torch.Tensor | int | None]:
        """The parts of one batch, and how many tokens they predict; Trainer itself counts one too many in a row for some families."""
        parts, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.num_blocks += sum(len(part["labels"]) for part in parts)
        return parts, torch.stack([part["labels"].ne(IGNORED).sum() for part in parts]).sum().to(device)

    def evaluate(self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Validation loss (nats per token, end-of-text counted) and bits per byte (text alone), both token-weighted."""
        assert ignore_keys is None
        model = self.model
        assert model is not None
        model.eval()
        totals = torch.zeros(4, dtype=torch.float64)
        for batch in self.get_eval_dataloader(eval_dataset):
            inputs = self._prepare_inputs(batch)
            with self.accelerator.autocast():
                totals += torch.tensor(validation_nll(model, inputs, self._end_of_text_id), dtype=torch.float64)
        model.train()
        nll, num_tokens, text_nll, num_text_tokens = totals.tolist()
        metrics = {
            f"{metric_key_prefix}_loss": nll / num_tokens,
            f"{metric_key_prefix}_bits_per_byte": text_nll / num_text_tokens * self._tokens_per_byte / math.log(2),
        }
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


class EvaluateAtTheEnd(TrainerCallback):
    """Measures and saves after the last step too, where the number of steps is no multiple of the interval."""

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step >= state.max_steps:
            control.should_evaluate = control.should_save = True


def _loss_of_outputs(outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None) -> torch.Tensor:
    return sum_over_tokens(outputs["logits"], labels, num_items_in_batch)
