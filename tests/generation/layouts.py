"""The layouts of the families' models as transformers loads them.

layout = layout_of(model)
"""

from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedModel

from prosemill.generation.layout import Attention, CrossAttention, FeedForward, Layer, Layout, Matrix, Norm


def layout_of(model: PreTrainedModel) -> Layout:
    """A loaded model's matrices, as a decoder goes through them."""
    return _LAYOUTS[model.config.model_type](model)


def _llama(model: Any) -> Layout:
    body, config = model.model, model.config
    positions = torch.arange(config.max_position_embeddings)
    cosine, sine = body.rotary_emb(torch.zeros(1, dtype=torch.float32), positions[None])

    def layer(block: Any) -> Layer:
        attention, feed_forward = block.self_attn, block.mlp
        return Layer(
            attention=Attention(
                norm=_root_mean_square(block.input_layernorm),
                query_key_value=_stacked(attention.q_proj, attention.k_proj, attention.v_proj),
                output=_stacked(attention.o_proj),
                scale=attention.scaling,
            ),
            feed_forward=FeedForward(
                norm=_root_mean_square(block.post_attention_layernorm),
                up=_stacked(feed_forward.gate_proj, feed_forward.up_proj),
                is_gated=True,
                activation=feed_forward.act_fn.forward,
                down=_stacked(feed_forward.down_proj),
            ),
        )

    return Layout(
        embedding=body.embed_tokens.weight,
        rotary=(cosine[0], sine[0]),
        layers=tuple(layer(block) for block in body.layers),
        norm=_root_mean_square(body.norm),
        head=Matrix(model.lm_head.weight),
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        head_size=body.layers[0].self_attn.head_dim,
    )


def _gpt2(model: Any) -> Layout:
    body, config = model.transformer, model.config

    def matrix(module: Any) -> Matrix:
        return Matrix(module.weight.T, module.bias)  # transformers' Conv1D is [in, out]

    def layer(block: Any) -> Layer:
        return Layer(
            attention=Attention(
                norm=_centred(block.ln_1),
                query_key_value=matrix(block.attn.c_attn),
                output=matrix(block.attn.c_proj),
                scale=block.attn.scaling,
            ),
            feed_forward=FeedForward(
                norm=_centred(block.ln_2),
                up=matrix(block.mlp.c_fc),
                is_gated=False,
                activation=block.mlp.act.forward,
                down=matrix(block.mlp.c_proj),
            ),
        )

    return Layout(
        embedding=body.wte.weight,
        positions=body.wpe.weight,
        layers=tuple(layer(block) for block in body.h),
        norm=_centred(body.ln_f),
        head=Matrix(model.lm_head.weight),
        num_heads=config.n_head,
        num_kv_heads=config.n_head,
        head_size=config.n_embd // config.n_head,
    )


def _gpt_neo(model: Any) -> Layout:
    body, config = model.transformer, model.config

    def layer(block: Any) -> Layer:
        attention = block.attn.attention
        return Layer(
            attention=Attention(
                norm=_centred(block.ln_1),
                query_key_value=_stacked(attention.q_proj, attention.k_proj, attention.v_proj),
                output=_stacked(attention.out_proj),
                scale=1.0,
                window=config.window_size if block.attn.attention_type == "local" else None,
            ),
            feed_forward=FeedForward(
                norm=_centred(block.ln_2),
                up=_stacked(block.mlp.c_fc),
                is_gated=False,
                activation=block.mlp.act.forward,
                down=_stacked(block.mlp.c_proj),
            ),
        )

    return Layout(
        embedding=body.wte.weight,
        positions=body.wpe.weight,
        layers=tuple(layer(block) for block in body.h),
        norm=_centred(body.ln_f),
        head=Matrix(model.lm_head.weight),
        num_heads=config.num_heads,
        num_kv_heads=config.num_heads,
        head_size=config.hidden_size // config.num_heads,
    )


def _t5(model: Any) -> Layout:
    decoder, config = model.decoder, model.config

    def layer(block: Any) -> Layer:
        own, cross, last = block.layer
        self_attention, cross_attention, feed_forward = own.SelfAttention, cross.EncDecAttention, last.DenseReluDense
        is_gated = config.is_gated_act
        return Layer(
            attention=Attention(
                norm=_root_mean_square(own.layer_norm),
                query_key_value=_stacked(self_attention.q, self_attention.k, self_attention.v),
                output=_stacked(self_attention.o),
                scale=1.0,
            ),
            cross_attention=CrossAttention(
                norm=_root_mean_square(cross.layer_norm),
                query=_stacked(cross_attention.q),
                key_value=_stacked(cross_attention.k, cross_attention.v),
                output=_stacked(cross_attention.o),
                scale=1.0,
            ),
            feed_forward=FeedForward(
                norm=_root_mean_square(last.layer_norm),
                up=_stacked(feed_forward.wi_0, feed_forward.wi_1) if is_gated else _stacked(feed_forward.wi),
                is_gated=is_gated,
                activation=feed_forward.act.forward,
                down=_stacked(feed_forward.wo),
            ),
        )

    def encode(tokens: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = model.encoder(input_ids=tokens[None]).last_hidden_state[0]
        return hidden

    return Layout(
        embedding=decoder.embed_tokens.weight,
        distances=_distances(decoder.block[0].layer[0].SelfAttention, config.relative_attention_max_distance),
        layers=tuple(layer(block) for block in decoder.block),
        norm=_root_mean_square(decoder.final_layer_norm),
        head=Matrix(model.lm_head.weight),
        head_scale=config.d_model**-0.5 if config.scale_decoder_outputs else 1.0,
        num_heads=config.num_heads,
        num_kv_heads=config.num_heads,
        head_size=config.d_kv,
        start=config.decoder_start_token_id,
        encode=encode,
    )


_LAYOUTS: dict[str, Callable[[Any], Layout]] = {"gpt2": _gpt2, "gpt_neo": _gpt_neo, "llama": _llama, "t5": _t5}


def _distances(attention: Any, farthest: int) -> torch.Tensor:
    """What T5 adds to a head's scores for keys 0, 1, … `farthest` tokens back, [heads, distances]."""
    with torch.no_grad():
        biases = attention.compute_bias(farthest + 1, farthest + 1)  # [1, heads, queries, keys]
    of_last_query: torch.Tensor = biases[0, :, -1].flip(-1)
    return of_last_query


def _stacked(*layers: Any) -> Matrix:
    """Linear layers that read the same input as one matrix."""
    weight = torch.cat([layer.weight for layer in layers])
    biases = [layer.bias for layer in layers]
    return Matrix(weight, None if biases[0] is None else torch.cat(biases))


def _centred(module: Any) -> Norm:
    return Norm(module.weight, module.bias, module.eps)


def _root_mean_square(module: Any) -> Norm:
    return Norm(module.weight, None, module.variance_epsilon)
