"""Canonical ops (gemma::...), which passes put into the graph in place of aten ops."""

from graph_gemma.graph_model.ops.attention import paged_attention, paged_attention_int8
from graph_gemma.graph_model.ops.collective import all_gather, all_reduce
from graph_gemma.graph_model.ops.elementwise import gelu_and_mul, rotary, softcap
from graph_gemma.graph_model.ops.linear import (
    float32_linear,
    native_int8_linear,
    native_int_linear,
    onednn_linear,
    onednn_supports,
    skinny_int8_weight_linear,
    skinny_linear,
    tiled_int8_weight_linear,
    tiled_linear,
)
from graph_gemma.graph_model.ops.norm import add_rms_norm, rms_norm
from graph_gemma.graph_model.ops.quantize import (
    add_rms_norm_quantize,
    dequantize,
    dequantize_weight,
    int8_linear,
    int8_weight_linear,
    int_linear,
    quantize,
    quantize_rows,
    rms_norm_quantize,
)
from graph_gemma.graph_model.ops.registry import NAMESPACE, is_canonical
from graph_gemma.graph_model.ops.sharded_tokens import (
    redraw,
    sharded_embedding,
    sharded_greedy_token,
    sharded_log_probabilities,
    sharded_sample_token,
    sharded_target_logprobs,
    sharded_token_logprobs,
)
from graph_gemma.graph_model.ops.tokens import (
    NOT_FINITE,
    greedy_token,
    last_token,
    log_probabilities,
    sample_token,
    take_tokens,
    target_logprobs,
    token_logprobs,
)
