"""The rewritten graphs of all phases together against transformers: prompts, their chunks, then decode."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.checkpoints import make_model
from support.configs import TINY_CONFIGS
from support.graphs import make_caches, run_graph
from torch import Tensor

from graph_gemma.graph_model.bucket import Bucket
from graph_gemma.graph_model.capture import capture
from graph_gemma.graph_model.graph import KVCacheConfig, ModelGraph
from graph_gemma.passes.framework.manager import run_passes
from graph_gemma.passes.pipeline import DEFAULT_PASSES

KV_CACHE = KVCacheConfig(num_blocks=8, block_size=16)
PREFILL = Bucket("prefill", batch=2, chunk=16, max_blocks_per_seq=0, logprobs=0)
EXTEND = Bucket("extend", batch=2, chunk=16, max_blocks_per_seq=2, logprobs=0)
DECODE = Bucket("decode", batch=2, chunk=1, max_blocks_per_seq=2, logprobs=0)
BLOCKS = torch.tensor([[5, 2], [3, 6]])  # block 0 is scratch
# Of two rows: tokens before each step and in it. Row 0 crosses a block inside a chunk, row 1 while decoding.
STEPS = [(PREFILL, (0, 0), (16, 9)), (EXTEND, (16, 9), (3, 6)), *((DECODE, (19 + i, 15 + i), (1, 1)) for i in range(3))]


def step_inputs(ids: Tensor, bucket: Bucket, starts: tuple[int, ...], lengths: tuple[int, ...]) -> dict[str, Tensor]:
    """What the host prepares; padding has id 0, position 0 and a scratch slot of its own."""
    token_ids, positions = (torch.zeros(bucket.batch, bucket.chunk, dtype=torch.int64) for _ in range(2))
    slots = torch.arange(bucket.batch * bucket.chunk).view(bucket.batch, bucket.chunk) % 16
    for row, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        span = torch.arange(start, start + length)
        token_ids[row, :length], positions[row, :length] = ids[row, span], span
        slots[row, :length] = BLOCKS[row, span // 16] * 16 + span % 16
    return {
        "input_ids": token_ids,
        "positions": positions,
        "slot_mapping": slots,
        "context_lens": torch.tensor(starts) + torch.tensor(lengths),
        "query_lens": torch.tensor(lengths),
        "block_table": BLOCKS,
    }


@pytest.mark.parametrize("name", TINY_CONFIGS)
@torch.no_grad()
def test_every_phase_chooses_the_tokens_of_transformers(name: str) -> None:
    config = replace(TINY_CONFIGS[name], num_hidden_layers=2)
    reference = make_model(config)
    read = dict(reference.named_parameters()).__getitem__
    graphs: dict[Bucket, ModelGraph] = {}
    for bucket in (PREFILL, EXTEND, DECODE):
        graphs[bucket] = capture(config, bucket, KV_CACHE, torch.float32)
        run_passes(graphs[bucket], [cls() for cls in DEFAULT_PASSES])
    ids = torch.randint(0, config.vocab_size, (2, 24), generator=torch.Generator().manual_seed(6))
    expected = reference(ids).logits.log_softmax(-1)
    caches = make_caches(graphs[PREFILL], fill=float("nan"))

    for bucket, starts, lengths in STEPS:
        inputs = step_inputs(ids, bucket, starts, lengths)
        tokens, logprobs, *_ = run_graph(graphs[bucket], read, inputs, caches)
        last = expected[torch.arange(2), torch.tensor(starts) + torch.tensor(lengths) - 1]
        assert torch.equal(tokens, last.argmax(-1)), (bucket, starts)
        torch.testing.assert_close(logprobs, last.max(-1).values, rtol=1e-5, atol=1e-5)
