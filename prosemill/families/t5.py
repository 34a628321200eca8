"""T5 (Raffel et al. 2020): the encoder reads a text's beginning, the decoder predicts how it goes on.

A stretch of n tokens becomes a prefix of ⌊n/2⌋ tokens, closed by end-of-text as T5 closes every input, and a continuation of the rest. In
training a stretch is what a block holds of one document; in evaluation it is a window of a document.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from prosemill.families.family import IGNORED, Batch, Family, Window

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig

    from prosemill.generation.layout import Layout
    from prosemill.params import ScratchModel

INITIALIZER_FACTOR = 0.3
"""Scales all random weights of T5; at 1 embeddings have a deviation of 1 and norms begin at 1. Small models learn faster so."""


class T5(Family):
    """Encoder and decoder with relative positions, which packing leaves as they are."""

    name = "t5"
    task = "SEQ_2_SEQ_LM"
    direction = "prefix → continuation"
    attention = "eager"  # the others do not take masks of this kind beside T5's own position bias in every arithmetic
    lora_targets = ("q", "v")

    def auto_class(self) -> Any:
        from transformers import AutoModelForSeq2SeqLM

        return AutoModelForSeq2SeqLM

    def scratch_config(self, shape: "ScratchModel", vocabulary_size: int) -> "PreTrainedConfig":
        """As in the first T5, not in T5 1.1: ReLU, and embeddings that encoder, decoder and output share.

        The encoder has as many layers as the decoder: transformers 5.23 sizes the decoder's cache by the encoder's layers.
        """
        from transformers import T5Config

        return T5Config(
            vocab_size=vocabulary_size,
            d_model=shape.hidden_size,
            d_kv=shape.hidden_size // shape.num_heads,
            d_ff=4 * shape.hidden_size,
            num_layers=shape.num_layers,
            num_heads=shape.num_heads,
            dropout_rate=shape.dropout,
            initializer_factor=INITIALIZER_FACTOR,
            pad_token_id=0,
            eos_token_id=0,
            decoder_start_token_id=0,  # type: ignore[call-arg]  # of the base class
        )

    def context_size(self, config: Mapping[str, Any]) -> int | None:
        """None: relative positions have no bound, whatever `n_positions` says."""
        return None

    def pack(self, blocks: "torch.Tensor", config: Any, end_of_text_id: int, *, documents_stop_attention: bool) -> Batch:
        """The inputs of encoder and decoder, and `labels`, [batch, n] with n about half the block's size; masks [batch, 1, n, n].

        Both sides of a stretch take the same number of slots, so that one mask serves the encoder's attention and the decoder's attention
        to the encoder.
        """
        import torch

        rows = [_stretches(block, end_of_text_id) if documents_stop_attention else [block] for block in blocks.tolist()]
        shape = (len(rows), max(sum(_num_slots(stretch) for stretch in row) for row in rows))
        encoder, decoder = torch.full(shape, end_of_text_id), torch.full(shape, config.decoder_start_token_id)
        labels, stretch_of, is_input = torch.full(shape, IGNORED), torch.full(shape, -1), torch.zeros(shape, dtype=torch.bool)
        for row, stretches in enumerate(rows):
            start = 0
            for number, stretch in enumerate(stretches):
                prefix, continuation = stretch[: len(stretch) // 2], stretch[len(stretch) // 2 :]
                encoder[row, start : start + len(prefix)] = torch.tensor(prefix, dtype=torch.int64)
                is_input[row, start : start + len(prefix) + 1] = True
                decoder[row, start + 1 : start + len(continuation)] = torch.tensor(continuation[:-1], dtype=torch.int64)
                labels[row, start : start + len(continuation)] = torch.tensor(continuation)
                stretch_of[row, start : start + _num_slots(stretch)] = number
                start += _num_slots(stretch)
        dtype = _dtype_of_weights(config)  # a wider mask would widen the scores
        same = stretch_of[:, :, None] == stretch_of[:, None, :]
        return {
            "input_ids": encoder,
            "attention_mask": _additive(same & is_input[:, None, :], dtype),
            "decoder_input_ids": decoder,
            "decoder_attention_mask": _additive(same.tril(), dtype),
            "labels": labels,
        }

    def windows(self, document: int, num_tokens: int, context: int, stride: int) -> Iterator[Window]:
        """Windows `stride` tokens apart whose second half is scored, as far as no window before scored it.

        At stride = context about half of a document is scored; at half of that all but its beginning.
        """
        begin = scored = 0
        while scored < num_tokens:
            end = min(begin + context, num_tokens)
            first_new = max(scored, begin + (end - begin) // 2)
            yield Window(document, begin, first_new, end)
            begin, scored = begin + stride, end

    def frame(self, documents: Sequence[Sequence[int]], windows: Sequence[Window], config: Any, end_of_text_id: int) -> Batch:
        """The inputs of encoder and decoder, and `labels`, padded on the right: [windows, n] and [windows, m]."""
        import torch

        prefixes = [documents[window.document][window.begin : window.first_new] for window in windows]
        continuations = [documents[window.document][window.first_new : window.end] for window in windows]
        shape = (len(windows), max(map(len, continuations)))
        decoder, labels = torch.full(shape, config.decoder_start_token_id), torch.full(shape, IGNORED)
        for row, continuation in enumerate(continuations):
            decoder[row, 1 : len(continuation)] = torch.tensor(continuation[:-1], dtype=torch.int64)
            labels[row, : len(continuation)] = torch.tensor(continuation)
        return {**self.prompt(prefixes, end_of_text_id), "decoder_input_ids": decoder, "labels": labels}

    def prompt(self, prompts: Sequence[Sequence[int]], end_of_text_id: int) -> Batch:
        """`input_ids` and `attention_mask` [prompts, n]: the prompt and end-of-text, padded on the right."""
        import torch

        shape = (len(prompts), 1 + max(map(len, prompts)))
        inputs, mask = torch.full(shape, end_of_text_id), torch.zeros(shape, dtype=torch.int64)
        for row, tokens in enumerate(prompts):
            inputs[row, : len(tokens)] = torch.tensor(tokens, dtype=torch.int64)
            mask[row, : len(tokens) + 1] = 1
        return {"input_ids": inputs, "attention_mask": mask}

    def num_given(self, batch: Batch) -> int:
        """One: the decoder's start token."""
        return 1

    def layout(self, model: Any) -> "Layout":
        from prosemill.generation.layout import Attention, CrossAttention, FeedForward, Layer, Layout, Matrix, stack, uncentred

        decoder, config = model.decoder, model.config

        def layer(block: Any) -> Layer:
            own, cross, last = block.layer
            self_attention, cross_attention, feed_forward = own.SelfAttention, cross.EncDecAttention, last.DenseReluDense
            is_gated = config.is_gated_act
            return Layer(
                attention=Attention(
                    norm=uncentred(own.layer_norm),
                    query_key_value=stack(self_attention.q, self_attention.k, self_attention.v),
                    output=stack(self_attention.o),
                    scale=1.0,
                ),
                cross_attention=CrossAttention(
                    norm=uncentred(cross.layer_norm),
                    query=stack(cross_attention.q),
                    key_value=stack(cross_attention.k, cross_attention.v),
                    output=stack(cross_attention.o),
                    scale=1.0,
                ),
                feed_forward=FeedForward(
                    norm=uncentred(last.layer_norm),
                    up=stack(feed_forward.wi_0, feed_forward.wi_1) if is_gated else stack(feed_forward.wi),
                    is_gated=is_gated,
                    activation=config.dense_act_fn,
                    down=stack(feed_forward.wo),
                ),
            )

        def encode(tokens: "torch.Tensor") -> "torch.Tensor":
            hidden: torch.Tensor = model.encoder(input_ids=tokens[None]).last_hidden_state[0]
            return hidden

        return Layout(
            embedding=decoder.embed_tokens.weight,
            distances=_distances(decoder.block[0].layer[0].SelfAttention, config.relative_attention_max_distance),
            layers=tuple(layer(block) for block in decoder.block),
            norm=uncentred(decoder.final_layer_norm),
            head=Matrix(model.lm_head.weight),
            head_scale=config.d_model**-0.5 if config.scale_decoder_outputs else 1.0,
            num_heads=config.num_heads,
            num_kv_heads=config.num_heads,
            head_size=config.d_kv,
            start=config.decoder_start_token_id,
            encode=encode,
        )

    def scoring_note(self, context: int) -> str:
        return (
            f"Scoring: every document stands alone and is read through windows of at most {context} tokens. The encoder reads a window's "
            "first half (closed by end-of-text), the decoder predicts its second half; only what is predicted is scored and counted in "
            "num_bytes, num_words and num_tokens, so the two strides score different shares of the text. These numbers compare with "
            "those of no model that reads from left to right. A prompt is the encoder's whole input, closed by end-of-text."
        )


def _stretches(block: list[int], end_of_text_id: int) -> list[list[int]]:
    """The block cut after every end-of-text."""
    stretches: list[list[int]] = [[]]
    for token in block:
        stretches[-1].append(token)
        if token == end_of_text_id:
            stretches.append([])
    return [stretch for stretch in stretches if stretch]


def _num_slots(stretch: list[int]) -> int:
    """Positions that a stretch takes on either side: its prefix with end-of-text, or its continuation, which is never longer."""
    return len(stretch) // 2 + 1


def _dtype_of_weights(config: Any) -> "torch.dtype":
    """fp32 where the config does not say; transformers leaves the type's bare name in a config that was saved."""
    import torch

    dtype = getattr(torch, str(config.dtype).removeprefix("torch."), torch.float32)
    return dtype if isinstance(dtype, torch.dtype) else torch.float32


def _additive(is_visible: "torch.Tensor", dtype: "torch.dtype") -> "torch.Tensor":
    """A mask [batch, n, n] as what is added to attention's scores, [batch, 1, n, n]."""
    import torch

    return torch.zeros(is_visible.shape, dtype=dtype).masked_fill_(~is_visible, torch.finfo(dtype).min)[:, None]


def _distances(attention: Any, farthest: int) -> "torch.Tensor":
    """What T5 adds to a head's scores for keys 0, 1, … `farthest` tokens back, [heads, distances]."""
    import torch

    with torch.no_grad():
        biases = attention.compute_bias(farthest + 1, farthest + 1)  # [1, heads, queries, keys]
    of_last_query: torch.Tensor = biases[0, :, -1].flip(-1)
    return of_last_query


FAMILY = T5()
