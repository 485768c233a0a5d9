"""Canonical ops: the vocabulary of the rewritten graph."""

from graph_model.ops.attention import paged_attention
from graph_model.ops.elementwise import gelu_and_mul, rotary
from graph_model.ops.linear import onednn_linear, onednn_supports
from graph_model.ops.norm import add_rms_norm, rms_norm
from graph_model.ops.registry import NAMESPACE, is_canonical
from graph_model.ops.tokens import greedy_token, last_token, sample_token, token_logprobs

__all__ = [
    "NAMESPACE",
    "add_rms_norm",
    "gelu_and_mul",
    "greedy_token",
    "is_canonical",
    "last_token",
    "onednn_linear",
    "onednn_supports",
    "paged_attention",
    "rms_norm",
    "rotary",
    "sample_token",
    "token_logprobs",
]
