"""Graph passes: from the captured plain model to the graph that a backend compiles.

The passes of every step are `pipeline.DEFAULT_PASSES`, in their order; conf/passes/default.yaml says what each does.
With several ranks, `shard_tensor_parallel` follows canonicalize and `shard_token_selection` follows select_token. The
passes that select kernels come last: those of `cpu` and `ascend` that the backend names.

A pass declares how often it must match, mostly by what the family counts, and what it comes after; the manager checks
both. Where another pass is off that makes what it matches, it is skipped, and dumps and check=true say so.

Exact passes keep every bit; tolerant ones change the order of sums and stay within rounding; quantizing ones stay
within the budget that they declare (graph_gemma.passes.check), and are left out where nothing is quantized.
"""
