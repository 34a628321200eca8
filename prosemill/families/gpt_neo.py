"""GPT-Neo (Black et al. 2021): 125M, 1.3B, 2.7B."""

from typing import TYPE_CHECKING, Any

from prosemill.families.decoder import Decoder, gpt_layout

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from prosemill.generation.layout import Layout
    from prosemill.params import ScratchModel


class GptNeo(Decoder):
    """Every other layer sees the last `window_size` tokens alone; transformers has no attention but the eager one for it on a CPU."""

    name = "gpt_neo"
    attention = "eager"
    lora_targets = ("q_proj", "v_proj")

    def scratch_config(self, shape: "ScratchModel", vocabulary_size: int) -> "PreTrainedConfig":
        from transformers import GPTNeoConfig

        kinds = ["global", "local"] * shape.num_layers
        return GPTNeoConfig(
            vocab_size=vocabulary_size,
            hidden_size=shape.hidden_size,
            num_layers=shape.num_layers,
            num_heads=shape.num_heads,
            attention_types=[[[kind], 1] for kind in kinds[: shape.num_layers]],
            window_size=min(256, max(shape.context_size // 2, 1)),
            max_position_embeddings=shape.context_size,
            resid_dropout=shape.dropout,
            embed_dropout=shape.dropout,
            attention_dropout=shape.dropout,
            bos_token_id=0,
            eos_token_id=0,
        )

    def layout(self, model: Any) -> "Layout":
        from prosemill.generation.layout import Attention, FeedForward, Layer, centred, stack

        config = model.config

        def layer(block: Any) -> Layer:
            attention = block.attn.attention
            return Layer(
                attention=Attention(
                    norm=centred(block.ln_1),
                    query_key_value=stack(attention.q_proj, attention.k_proj, attention.v_proj),
                    output=stack(attention.out_proj),
                    scale=1.0,
                    window=config.window_size if block.attn.attention_type == "local" else None,
                ),
                feed_forward=FeedForward(
                    norm=centred(block.ln_2),
                    up=stack(block.mlp.c_fc),
                    is_gated=False,
                    activation=config.activation_function,
                    down=stack(block.mlp.c_proj),
                ),
            )

        return gpt_layout(model, layer)


FAMILY = GptNeo()
