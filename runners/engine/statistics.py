"""Statistics of an engine: steps, tokens, seconds, preemptions, cache hits."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Statistics:
    """Counts and seconds since the engine was made or `reset` was called.

    A prefill step (of a `prefill` or an `extend` bucket) computes prompt tokens, or the tokens of a preempted
    sequence again; a decode step makes one token per row. Seconds of the host are those outside ``StepModel.run``;
    they include compiling a bucket that was not warmed up.
    """

    prefill_steps: int = 0
    prefill_tokens: int = 0
    prefill_s: float = 0.0
    prefill_host_s: float = 0.0  # of prefill_s, on the host
    decode_steps: int = 0
    decode_tokens: int = 0
    decode_s: float = 0.0
    decode_host_s: float = 0.0  # of decode_s, on the host
    preemptions: int = 0
    prompt_tokens: int = 0  # of sequences admitted for the first time
    cached_prompt_tokens: int = 0  # of these, found in the cache
    peak_blocks: int = 0  # most blocks in use at once, of layers that see all tokens
    peak_window_blocks: int = 0  # and of layers with a window

    @property
    def prefill_tokens_per_s(self) -> float:
        return self.prefill_tokens / self.prefill_s if self.prefill_s else 0.0

    @property
    def decode_tokens_per_s(self) -> float:
        return self.decode_tokens / self.decode_s if self.decode_s else 0.0

    @property
    def host_us_per_decode_step(self) -> float:
        return self.decode_host_s / self.decode_steps * 1e6 if self.decode_steps else 0.0

    def reset(self) -> None:
        vars(self).update(vars(Statistics()))

    def record(self, decode: bool, tokens: int, total_s: float, host_s: float, blocks: int, window_blocks: int) -> None:
        """Count one step."""
        if decode:
            self.decode_steps += 1
            self.decode_tokens += tokens
            self.decode_s += total_s
            self.decode_host_s += host_s
        else:
            self.prefill_steps += 1
            self.prefill_tokens += tokens
            self.prefill_s += total_s
            self.prefill_host_s += host_s
        self.peak_blocks = max(self.peak_blocks, blocks)
        self.peak_window_blocks = max(self.peak_window_blocks, window_blocks)
