"""LLaMA (Touvron et al. 2023) and models of its architecture: SmolLM2, TinyLlama."""

from typing import TYPE_CHECKING

from prosemill.errors import ProsemillError
from prosemill.families.decoder import Decoder

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from prosemill.params import ScratchModel


class Llama(Decoder):
    """Rotary positions, gated feed-forward layers, no biases."""

    name = "llama"
    lora_targets = ("q_proj", "v_proj")

    def scratch_config(self, shape: "ScratchModel", vocabulary_size: int) -> "PreTrainedConfig":
        from transformers import LlamaConfig

        if shape.hidden_size // shape.num_heads % 2:
            raise ProsemillError(
                f"`download.model`: hidden_size {shape.hidden_size} over num_heads {shape.num_heads} is odd, "
                "and rotary positions turn pairs of numbers: change one of them"
            )
        return LlamaConfig(
            vocab_size=vocabulary_size,
            hidden_size=shape.hidden_size,
            intermediate_size=_feed_forward_width(shape.hidden_size),
            num_hidden_layers=shape.num_layers,
            num_attention_heads=shape.num_heads,
            max_position_embeddings=shape.context_size,
            attention_dropout=shape.dropout,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=0,
            pad_token_id=None,  # the embedding of a padding token would never be trained
        )


def _feed_forward_width(hidden_size: int) -> int:
    """Two thirds of four times the width, as the gated layer has three matrices (Shazeer 2020), in multiples of 32."""
    return -(-8 * hidden_size // (3 * 32)) * 32


FAMILY = Llama()
