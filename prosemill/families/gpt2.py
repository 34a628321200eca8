"""GPT-2 (Radford et al. 2019): small to XL, DistilGPT-2."""

from typing import TYPE_CHECKING

from prosemill.families.decoder import Decoder

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from prosemill.params import ScratchModel


class Gpt2(Decoder):
    """Learned positions; query, key and value are one layer, `c_attn`."""

    name = "gpt2"
    lora_targets = ("c_attn",)

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


FAMILY = Gpt2()
