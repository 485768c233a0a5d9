"""LLM: load a model from settings and answer prompts, in Python."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from graph_gemma.runners.backends.base import Check
from graph_gemma.runners.command_line.entry import compose
from graph_gemma.runners.distributed.followers import lead_followers, needs_followers
from graph_gemma.runners.engine.driver import EngineDriver
from graph_gemma.runners.engine.sampling_params import SamplingParams
from graph_gemma.runners.io.tokenizer import end_of_answers, find_tokenizer
from graph_gemma.runners.llm.load import load_model
from graph_gemma.runners.llm.warm_up import reachable_buckets
from graph_gemma.runners.settings.model_settings import ModelSettings, resolve_settings


class LLM(EngineDriver):
    """A loaded model with the engine's interface: `generate`, `stream`, `generate_async`, `score`, `abort`.

    settings: overrides as on the command line of runners/infer.py (``["model.path=DIR", "dtype=bfloat16"]``), of which
    those of the model count; or resolved settings. tokenizer: None: the checkpoint's own, where it has one; without
    any, prompts are lists of token ids. check: as for `load_model`. Weights are read, and steps compiled, when they
    are first needed or by `warm_up`. With world_size above 1 this process leads the other ranks, which it starts, or
    which a launcher has started (`on_ranks`). `close` (or leaving a `with` block) ends the ranks that it started and
    gives back the checkpoint's files. Raises UserError.
    """

    def __init__(
        self, settings: ModelSettings | Sequence[str] = (), tokenizer: Any = None, check: Check = "no"
    ) -> None:
        if not isinstance(settings, ModelSettings):
            settings = resolve_settings(compose("infer", settings))
        self.settings = settings
        config = settings.config
        if tokenizer is None:
            tokenizer = find_tokenizer(settings.checkpoint_dir)
        ends = (*config.eos_token_ids, *end_of_answers(tokenizer))
        with ExitStack() as resources:
            if needs_followers(settings):
                resources.enter_context(lead_followers(settings, "graph_gemma.runners.llm.follower"))
            self.loaded = load_model(settings, resources, check)
            super().__init__(self.loaded.model, tokenizer, ends, config.vocab_size, config.image_token_ids)
            # Also at the end of the program, before what the other ranks' end needs is torn down.
            self._close = weakref.finalize(self, resources.pop_all().close)

    def warm_up(
        self,
        prompts: Sequence[Sequence[int]] | None = None,
        sampling: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        once: bool = False,
    ) -> None:
        """Load the weights and compile every step that answering `prompts` (token ids) can need, now or again.

        prompts: None: whatever may come, for a server; that compiles the whole table of buckets. sampling: the prompts'
        settings, one for all or one per prompt; without prompts, all kinds that may come (None: greedy). once: this
        LLM has answered nothing yet and will answer these prompts one time, which may need fewer steps. Steps of
        `score` are not among them.
        """
        model = self.loaded.model
        model.warm_up(reachable_buckets(model, prompts, sampling or SamplingParams(), once=once))

    def close(self) -> None:
        """Give back the checkpoint's files; no step that needs further weights can be compiled afterwards."""
        self._close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
