"""Graph passes: from the captured plain model to the graph that a backend compiles.

The passes in their order (conf/passes/default.yaml), with tier and what they do:

==================  ========  ==========================================================================
canonicalize        exact     one spelling for each operation; no-ops and unused weights dropped
fold_inv_freq       exact     the rotary frequencies become a weight
rms_norm            exact     float32 norm arithmetic -> gemma.rms_norm, its factor 1 + w computed at load
rotary              exact     slices, negation and concatenation -> gemma.rotary
merge_qkv           tolerant  three projections of one input -> one linear and a split
merge_gate_up       tolerant  two projections of one input -> one linear and a split
gelu_and_mul        exact     tanh GELU and product -> gemma.gelu_and_mul
paged_attention     tolerant  attention -> gemma.paged_attention; adds caches, tables and lengths to the signature
last_token          exact     only each row's last token, or the scored ones, reach the head
quantize_cache      quantis.  caches of int8 with a scale per token and head
insert_quantization quantis.  quantize and dequantize around the linears that are quantized; int8 weights
fold_dequantize     tolerant  dequantize into the integer or int8-weight linear
add_rms_norm        exact     residual sum and norm -> gemma.add_rms_norm
fold_quantize       exact     quantize into the norm before it
select_token        exact     logits -> token ids (greedy or sampled), log-probabilities on request
==================  ========  ==========================================================================

with several ranks, behind canonicalize and behind select_token:

=====================  ========  =======================================================================
shard_tensor_parallel  tolerant  each rank gets its part of the weights; collectives join the parts
shard_token_selection  tolerant  the token is chosen from the parts; whole logits are not gathered
=====================  ========  =======================================================================

and, chosen by the backend, to select kernels:

==================  ========  ==========================================================================
skinny_linear     tolerant  16-bit linear layers of few rows -> a kernel of our own, on CPUs
onednn_linear       tolerant  linear layers -> oneDNN, on CPUs
tiled_linear        tolerant  16-bit linear layers that are left -> products in float32, on CPUs
native_int8_linear  tolerant  int8 linear layers -> kernels of our own or torch's integer product, on CPUs
ascend_*_attention  tolerant  attention -> cache writes and the attention kernel of an Ascend chip
ascend_norm_*       (either)  norms -> GemmaRmsNorm or RmsNorm (exact), AddRmsNorm (fused, tolerant)
ascend_rotary       tolerant  rotary -> RotaryMul, or written out
ascend_geglu        tolerant  gated activation -> GeGluV2 on the merged projection
ascend_linear       tolerant  linear layers -> matrix products that read weights as they are stored
ascend_last_token   exact     a row's only token is taken without a gather
ascend_matmul_...   tolerant  matrix product and all-reduce -> MatmulAllReduce, in steps of prompts; off by default
==================  ========  ==========================================================================

A pass declares how often it must match, mostly by what the family counts, and what it comes after; the manager checks
both. Where another pass is off that makes what it matches, it is skipped, and dumps and check=true say so.

Exact passes keep every bit; tolerant ones change the order of sums and stay within rounding; quantizing ones stay
within the budget that they declare (passes.check). The quantizing passes
are left out where nothing is quantized.
"""
