"""What a model family must tell: how it is loaded and drawn, what it learns from a block, and how it is asked for a score or a text."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel

    from prosemill.generation.layout import Layout
    from prosemill.params import ScratchModel

IGNORED = -100  # a label that is not predicted

Batch = dict[str, "torch.Tensor"]


@dataclass(frozen=True, order=True)
class Window:
    """Tokens [begin, end) of a document, of which [first_new, end) are scored; those before them are only seen."""

    document: int
    begin: int
    first_new: int
    end: int

    @property
    def length(self) -> int:
        """Tokens of the window."""
        return self.end - self.begin

    @property
    def num_new(self) -> int:
        """Tokens that are scored."""
        return self.end - self.first_new


class Family(ABC):
    """One model family. A batch is what its model's `forward` takes, and `labels`: label i is what the logits at position i predict."""

    name: ClassVar[str]
    """transformers' `model_type`."""
    task: ClassVar[Literal["CAUSAL_LM", "SEQ_2_SEQ_LM"]]
    """What PEFT calls the model's task."""
    direction: ClassVar[str]
    """What is predicted from what, for tables: numbers of different directions do not compare."""
    attention: ClassVar[Literal["sdpa", "eager"]]
    """transformers' attention implementation that stops at document borders."""
    lora_targets: ClassVar[tuple[str, ...]]
    """Names of the layers that get an adapter, unless params name others."""
    is_served_by_vllm: ClassVar[bool] = False
    """Whether vLLM may write in our own engine's place."""

    @abstractmethod
    def auto_class(self) -> Any:
        """Transformers' class that loads such a model."""

    @abstractmethod
    def scratch_config(self, shape: "ScratchModel", vocabulary_size: int) -> "PreTrainedConfig":
        """The config of a model of this shape whose token 0 ends every document.

        Raises:
            ProsemillError: the family has no model of this shape.
        """

    @abstractmethod
    def context_size(self, config: Mapping[str, Any]) -> int | None:
        """Longest input in tokens by the content of config.json; None where the architecture sets no bound."""

    @abstractmethod
    def pack(self, blocks: "torch.Tensor", config: Any, end_of_text_id: int, *, documents_stop_attention: bool) -> Batch:
        """A training batch of blocks of token ids, [batch, block_size], in which documents stand one after the other.

        With `documents_stop_attention` each document is predicted exactly as if it were alone.
        """

    @abstractmethod
    def windows(self, document: int, num_tokens: int, context: int, stride: int) -> Iterator[Window]:
        """The windows over a document, each at most `context` tokens long, in which no token is scored twice."""

    @abstractmethod
    def frame(self, documents: Sequence[Sequence[int]], windows: Sequence[Window], config: Any, end_of_text_id: int) -> Batch:
        """The windows as one batch; what is only seen has no label."""

    @abstractmethod
    def prompt(self, prompts: Sequence[Sequence[int]], end_of_text_id: int) -> Batch:
        """What `generate` takes to continue prompts, each the beginning of a document. Its output's new tokens begin at `num_given`."""

    @abstractmethod
    def num_given(self, batch: Batch) -> int:
        """Tokens that stand before the new ones in each row of what `generate` gives for `prompt`'s batch."""

    @abstractmethod
    def layout(self, model: Any) -> "Layout":
        """A loaded model's matrices, as the decoding engine goes through them."""

    @abstractmethod
    def scoring_note(self, context: int) -> str:
        """How documents are scored and prompts are fed, in words, for the evaluation's protocol."""

    def load(self, folder: Path, **options: Any) -> "PreTrainedModel":
        """The model of a folder, in evaluation mode; `options` are those of `from_pretrained`. No code of the folder is run."""
        return self.load_with_report(folder, **options)[0]

    def load_with_report(self, folder: Path, **options: Any) -> "tuple[PreTrainedModel, dict[str, Any]]":
        """`load`, and what transformers says of it: `missing_keys`, `mismatched_keys`, `unexpected_keys`."""
        safe = {"local_files_only": True, "trust_remote_code": False, "output_loading_info": True}
        answer = self.auto_class().from_pretrained(folder, attn_implementation=self.attention, **safe, **options)
        model: PreTrainedModel = answer[0]
        return model.eval(), answer[1]

    def draw(self, shape: "ScratchModel", vocabulary_size: int) -> "PreTrainedModel":
        """A model with random weights in fp32, drawn by the shape's seed; the process's own random state is kept."""
        import torch

        config = self.scratch_config(shape, vocabulary_size)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(shape.seed)
            model: PreTrainedModel = self.auto_class().from_config(config, attn_implementation=self.attention)
            model.eval()
        return model
