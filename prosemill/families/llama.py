"""LLaMA (Touvron et al. 2023) and models of its architecture: SmolLM2, TinyLlama."""

from typing import TYPE_CHECKING, Any

from prosemill.errors import ProsemillError
from prosemill.families.decoder import Decoder

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from prosemill.generation.layout import Layout
    from prosemill.params import ScratchModel


class Llama(Decoder):
    """Rotary positions, gated feed-forward layers, no biases."""

    name = "llama"
    lora_targets = ("q_proj", "v_proj")
    is_served_by_vllm = True

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

    def layout(self, model: Any) -> "Layout":
        import torch

        from prosemill.generation.layout import Attention, FeedForward, Layer, Layout, Matrix, stack, uncentred

        body, config = model.model, model.config
        positions = torch.arange(config.max_position_embeddings)
        cosine, sine = body.rotary_emb(torch.zeros(1, dtype=torch.float32), positions[None])

        def layer(block: Any) -> Layer:
            attention, feed_forward = block.self_attn, block.mlp
            return Layer(
                attention=Attention(
                    norm=uncentred(block.input_layernorm),
                    query_key_value=stack(attention.q_proj, attention.k_proj, attention.v_proj),
                    output=stack(attention.o_proj),
                    scale=attention.scaling,
                ),
                feed_forward=FeedForward(
                    norm=uncentred(block.post_attention_layernorm),
                    up=stack(feed_forward.gate_proj, feed_forward.up_proj),
                    is_gated=True,
                    activation=config.hidden_act,
                    down=stack(feed_forward.down_proj),
                ),
            )

        return Layout(
            embedding=body.embed_tokens.weight,
            rotary=(cosine[0], sine[0]),
            layers=tuple(layer(block) for block in body.layers),
            norm=uncentred(body.norm),
            head=Matrix(model.lm_head.weight),
            num_heads=config.num_attention_heads,
            num_kv_heads=config.num_key_value_heads,
            head_size=body.layers[0].self_attn.head_dim,
        )


def _feed_forward_width(hidden_size: int) -> int:
    """Two thirds of four times the width, as the gated layer has three matrices (Shazeer 2020), in multiples of 32."""
    return -(-8 * hidden_size // (3 * 32)) * 32


FAMILY = Llama()
