"""GPT-2 (Radford et al. 2019): small to XL, DistilGPT-2."""

from typing import TYPE_CHECKING, Any

from prosemill.families.decoder import Decoder, gpt_layout

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from prosemill.generation.layout import Layout
    from prosemill.params import ScratchModel


class Gpt2(Decoder):
    """Learned positions; query, key and value are one layer, `c_attn`."""

    name = "gpt2"
    lora_targets = ("c_attn",)
    is_served_by_vllm = True

    def scratch_config(self, shape: "ScratchModel", vocabulary_size: int) -> "PreTrainedConfig":
        from transformers import GPT2Config

        return GPT2Config(
            vocab_size=vocabulary_size,
            n_embd=shape.hidden_size,
            n_layer=shape.num_layers,
            n_head=shape.num_heads,
            n_positions=shape.context_size,
            resid_pdrop=shape.dropout,
            embd_pdrop=shape.dropout,
            attn_pdrop=shape.dropout,
            bos_token_id=0,
            eos_token_id=0,
        )

    def layout(self, model: Any) -> "Layout":
        from prosemill.generation.layout import Attention, FeedForward, Layer, Matrix, centred

        def matrix(module: Any) -> Matrix:
            return Matrix(module.weight.T, module.bias)  # transformers' Conv1D is [in, out]

        def layer(block: Any) -> Layer:
            return Layer(
                attention=Attention(
                    norm=centred(block.ln_1),
                    query_key_value=matrix(block.attn.c_attn),
                    output=matrix(block.attn.c_proj),
                    scale=block.attn.scaling,
                ),
                feed_forward=FeedForward(
                    norm=centred(block.ln_2),
                    up=matrix(block.mlp.c_fc),
                    is_gated=False,
                    activation=model.config.activation_function,
                    down=matrix(block.mlp.c_proj),
                ),
            )

        return gpt_layout(model, layer)


FAMILY = Gpt2()
