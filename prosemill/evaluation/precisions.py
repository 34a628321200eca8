"""What it costs to write with weights of fewer bits: the decoding engine's score, by the precision that it holds them in.

    scores = measure_precisions(model, documents, end_of_text_id=0, context=256, num_tokens=8192, advance=bar.advance)
    scores["int8"].nll_sum / scores["fp32"].nll_sum - 1    # share of bits per byte

The service's `auto` goes by these numbers. They are of this processor's kernels: every product is what it is when a request is answered.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import get_args

from transformers import PreTrainedModel

from prosemill.evaluation.scoring import Score
from prosemill.families import family_of_model
from prosemill.families.family import IGNORED, Batch
from prosemill.generation.decoder import CHUNK, Decoder
from prosemill.generation.precision import Precision


def measure_precisions(
    model: PreTrainedModel,
    documents: Sequence[Sequence[int]],
    *,
    end_of_text_id: int,
    context: int,
    num_tokens: int,
    advance: Callable[[int], None],
) -> dict[Precision, Score]:
    """Score the first documents with weights in each precision, through windows of `context` tokens that do not overlap.

    Args:
        model: In fp32, on the CPU.
        documents: Token ids of each.
        end_of_text_id: The token that ends a document.
        context: Tokens of a window.
        num_tokens: Windows are scored until they have so many.
        advance: Called with the number of tokens that were scored.
    """
    family = family_of_model(model)
    layout = family.layout(model)
    batches = list(_windows(model, documents, end_of_text_id, context, num_tokens))
    found: dict[Precision, Score] = {}
    for precision in get_args(Precision):
        decoder = Decoder(layout, precision=precision, num_rows=1)
        nll = []
        for batch in batches:
            nll.append(_nll(decoder, batch))
            advance(_num_scored(batch))
        found[precision] = Score(math.fsum(nll), sum(map(_num_scored, batches)))
    return found


def _windows(
    model: PreTrainedModel, documents: Sequence[Sequence[int]], end_of_text_id: int, context: int, num_tokens: int
) -> Iterator[Batch]:
    """Windows of the first documents, each a batch of its own."""
    family = family_of_model(model)
    windows = (window for number, tokens in enumerate(documents) for window in family.windows(number, len(tokens), context, context))
    left = num_tokens
    for window in windows:
        if left <= 0:
            return
        batch = family.frame(documents, [window], model.config, end_of_text_id)
        left -= _num_scored(batch)
        yield batch


def _num_scored(batch: Batch) -> int:
    return int((batch["labels"] != IGNORED).sum())


def _nll(decoder: Decoder, batch: Batch) -> float:
    """Sum of -ln p of what the batch's labels say."""
    tokens = batch.get("decoder_input_ids", batch["input_ids"])[0].tolist()
    if "decoder_input_ids" in batch:
        decoder.look_at(0, decoder.encode(batch["input_ids"][0].tolist()))
    labels = batch["labels"][0].tolist()
    begins = range(0, len(tokens), CHUNK)
    return math.fsum(decoder.nll(0, tokens[begin : begin + CHUNK], labels[begin : begin + CHUNK], begin=begin) for begin in begins)
