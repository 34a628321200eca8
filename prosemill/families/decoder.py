"""Models that predict a text from left to right: GPT-2, GPT-Neo, LLaMA and their like.

A document's first token is predicted from the end-of-text token, in training and in evaluation alike.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from prosemill.families.family import IGNORED, Batch, Family, Window

if TYPE_CHECKING:
    import torch

    from prosemill.generation.layout import Layer, Layout

CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "n_ctx")


class Decoder(Family):
    """What decoder-only families share. One of them adds `name`, `lora_targets` and `scratch_config`."""

    task = "CAUSAL_LM"
    direction = "left to right"
    attention: ClassVar[Literal["sdpa", "eager"]] = "sdpa"

    def auto_class(self) -> Any:
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM

    def context_size(self, config: Mapping[str, Any]) -> int | None:
        """The smallest of the context lengths that the config names."""
        return min((config[key] for key in CONTEXT_KEYS if isinstance(config.get(key), int)), default=None)

    def pack(self, blocks: "torch.Tensor", config: Any, end_of_text_id: int, *, documents_stop_attention: bool) -> Batch:
        """`input_ids` and `labels` [batch, block_size], and `position_ids` that restart at each document if attention stops there."""
        import torch

        labels = torch.cat([blocks[:, 1:], torch.full_like(blocks[:, :1], IGNORED)], dim=1)
        batch = {"input_ids": blocks, "labels": labels}
        if documents_stop_attention:
            batch["position_ids"] = position_ids(blocks, end_of_text_id)
        return batch

    def windows(self, document: int, num_tokens: int, context: int, stride: int) -> Iterator[Window]:
        """Windows `stride` tokens apart that score each token exactly once (Hugging Face, "Perplexity of fixed-length models").

        A window of n input tokens predicts n tokens, so at stride = context too every token is scored, the first of a window from the
        token before it.
        """
        begin = scored = 0
        while scored < num_tokens:
            end = min(begin + context, num_tokens)
            yield Window(document, begin, scored, end)
            begin, scored = begin + stride, end

    def frame(self, documents: Sequence[Sequence[int]], windows: Sequence[Window], config: Any, end_of_text_id: int) -> Batch:
        """`input_ids` and `labels` [windows, n], padded on the right.

        Causal attention never looks there, so no attention mask is needed: whatever stands there changes nothing.
        """
        import torch

        width = max(window.length for window in windows)
        inputs = torch.full((len(windows), width), end_of_text_id)
        labels = torch.full((len(windows), width), IGNORED)
        for row, window in enumerate(windows):
            tokens = documents[window.document]
            inputs[row, 0] = tokens[window.begin - 1] if window.begin else end_of_text_id
            inputs[row, 1 : window.length] = torch.tensor(tokens[window.begin : window.end - 1])
            labels[row, window.first_new - window.begin : window.length] = torch.tensor(tokens[window.first_new : window.end])
        return {"input_ids": inputs, "labels": labels}

    def prompt(self, prompts: Sequence[Sequence[int]], end_of_text_id: int) -> Batch:
        """`input_ids` and `attention_mask` [prompts, n]: end-of-text and the prompt, padded on the left."""
        import torch

        width = 1 + max(map(len, prompts))
        inputs = torch.full((len(prompts), width), end_of_text_id)
        mask = torch.zeros_like(inputs)
        for row, tokens in enumerate(prompts):
            inputs[row, width - len(tokens) :] = torch.tensor(tokens, dtype=torch.int64)
            mask[row, width - len(tokens) - 1 :] = 1
        return {"input_ids": inputs, "attention_mask": mask}

    def num_given(self, batch: Batch) -> int:
        """The prompt's width: `generate` gives it back before the new tokens."""
        return batch["input_ids"].shape[1]

    def scoring_note(self, context: int) -> str:
        return (
            "Scoring: every document stands alone; its tokens are predicted from the end-of-text token and the document's tokens before "
            f"them, in windows of at most {context} input tokens. The closing end-of-text is not scored. "
            "A prompt is fed as end-of-text and its tokens."
        )


def position_ids(blocks: "torch.Tensor", end_of_text_id: int) -> "torch.Tensor":
    """Positions that restart at every end-of-text token, so that attention stops there.

    The end of one document is also the beginning of the next: a document's first token is predicted from the end-of-text token
    alone, exactly as the evaluation does, and the model learns to stop. transformers reads document borders off restarting positions
    when no attention mask is given and no cache is used.

    Args:
        blocks: Token ids, [batch, length].
        end_of_text_id: The token that ends every document.

    Returns:
        Positions, [batch, length], int64.
    """
    import torch

    index = torch.arange(blocks.shape[1], device=blocks.device).expand_as(blocks)
    starts = torch.where(blocks == end_of_text_id, index, 0).cummax(dim=1).values
    return index - starts


def gpt_layout(model: Any, layer: Callable[[Any], "Layer"]) -> "Layout":
    """The layout of a model whose parts are called as GPT-2's, with what makes a layer of each of its blocks."""
    from prosemill.generation.layout import Layout, Matrix, centred

    body, config = model.transformer, model.config
    return Layout(
        embedding=body.wte.weight,
        positions=body.wpe.weight,
        layers=tuple(layer(block) for block in body.h),
        norm=centred(body.ln_f),
        head=Matrix(model.lm_head.weight),
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_attention_heads,
        head_size=config.hidden_size // config.num_attention_heads,
    )
