"""Canonical ops: the vocabulary of the rewritten graph."""

from graph_model.ops.attention import paged_attention, paged_attention_int8
from graph_model.ops.collective import all_gather, all_reduce
from graph_model.ops.elementwise import gelu_and_mul, rotary
from graph_model.ops.linear import (
    few_rows_int8_weight_linear,
    few_rows_linear,
    float32_linear,
    native_int8_linear,
    native_int_linear,
    onednn_linear,
    onednn_supports,
    tiled_int8_weight_linear,
    tiled_linear,
)
from graph_model.ops.norm import add_rms_norm, rms_norm
from graph_model.ops.quantise import (
    add_rms_norm_quantise,
    dequantise,
    dequantise_weight,
    int8_linear,
    int8_weight_linear,
    int_linear,
    quantise,
    quantise_rows,
    rms_norm_quantise,
)
from graph_model.ops.registry import NAMESPACE, is_canonical
from graph_model.ops.sharded_tokens import (
    redraw,
    sharded_embedding,
    sharded_greedy_token,
    sharded_log_probabilities,
    sharded_sample_token,
    sharded_target_logprobs,
    sharded_token_logprobs,
)
from graph_model.ops.tokens import (
    greedy_token,
    last_token,
    log_probabilities,
    sample_token,
    take_tokens,
    target_logprobs,
    token_logprobs,
)

__all__ = [
    "NAMESPACE",
    "add_rms_norm",
    "add_rms_norm_quantise",
    "all_gather",
    "all_reduce",
    "dequantise",
    "dequantise_weight",
    "few_rows_int8_weight_linear",
    "few_rows_linear",
    "float32_linear",
    "gelu_and_mul",
    "greedy_token",
    "int8_linear",
    "int8_weight_linear",
    "int_linear",
    "is_canonical",
    "last_token",
    "log_probabilities",
    "native_int8_linear",
    "native_int_linear",
    "onednn_linear",
    "onednn_supports",
    "paged_attention",
    "paged_attention_int8",
    "quantise",
    "quantise_rows",
    "redraw",
    "rms_norm",
    "rms_norm_quantise",
    "rotary",
    "sample_token",
    "sharded_embedding",
    "sharded_greedy_token",
    "sharded_log_probabilities",
    "sharded_sample_token",
    "sharded_target_logprobs",
    "sharded_token_logprobs",
    "take_tokens",
    "target_logprobs",
    "tiled_int8_weight_linear",
    "tiled_linear",
    "token_logprobs",
]
