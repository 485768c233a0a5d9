"""LLM: load a model and answer prompts, chats and scoring requests, in Python."""

from __future__ import annotations

import os
import weakref
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from graph_gemma.graph_model.errors import UserError
from graph_gemma.runners.engine.driver import EngineDriver
from graph_gemma.runners.engine.driver import Prompt as PlainPrompt
from graph_gemma.runners.engine.result import RequestResult, TokenEvent
from graph_gemma.runners.engine.sampling_params import SamplingParams
from graph_gemma.runners.io.status import Status
from graph_gemma.runners.io.tokenizer import Message, chat_token_ids, end_of_answers, find_tokenizer
from graph_gemma.runners.llm.arguments import composed_settings, sampling_of
from graph_gemma.runners.llm.warm_up import reachable_buckets

if TYPE_CHECKING:
    from graph_gemma.runners.backends.base import Check
    from graph_gemma.runners.settings.model_settings import ModelSettings

Prompt = PlainPrompt | list[Message]  # a text, token ids, or the messages of a chat
Sampling = SamplingParams | list[SamplingParams] | None


class LLM(EngineDriver):
    """A loaded model: `generate`, `chat`, `stream`, `generate_async`, `score`, `abort`.

    model: the directory of a checkpoint, or a shape's name; a list of settings as on the command line of
    ``graph-gemma infer`` (``["model.path=DIR", "dtype=bfloat16"]``), of which those of the model count; or resolved
    settings; None: the demo. tokenizer: None: the checkpoint's own, where it has one; without any, prompts are lists
    of token ids. check: as for `load_model`. settings: further ones by name (``dtype="bfloat16", max_seq_len=2048``).

    torch is imported here; weights are read, and steps compiled, when they are first needed or by `warm_up`; status
    lines on stderr say so (``verbosity=0``: none). With world_size above 1 this process leads the other ranks, which it
    starts, or which a launcher has started (`on_ranks`). `close` (or leaving a `with` block) ends the ranks that it
    started and gives back the checkpoint's files. Raises UserError.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | Sequence[str] | ModelSettings | None = None,
        tokenizer: Any = None,
        check: Check = "no",
        **settings: Any,
    ) -> None:
        if model is None or isinstance(model, str | os.PathLike | Sequence):
            composed = composed_settings(model, settings)
            self._status = Status(composed.verbosity)
            self._status("importing torch")
            from graph_gemma.runners.settings.model_settings import resolve_settings

            resolved = resolve_settings(composed)
        elif settings:
            raise UserError(f"LLM: {next(iter(settings))} cannot be added to settings that are resolved already.")
        else:
            resolved = model
            self._status = Status(model.verbosity)
        self.settings = resolved
        try:
            self._load(resolved, tokenizer, check)
        finally:
            self._status.done()

    def _load(self, settings: ModelSettings, tokenizer: Any, check: Check) -> None:
        # These import torch, which takes seconds.
        from graph_gemma.runners.distributed.followers import lead_followers, needs_followers
        from graph_gemma.runners.llm.load import load_model

        self._status(f"opening {settings.checkpoint_dir or 'a model with random weights'}")
        config = settings.config
        if tokenizer is None:
            tokenizer = find_tokenizer(settings.checkpoint_dir)
        ends = (*config.eos_token_ids, *end_of_answers(tokenizer))
        with ExitStack() as resources:
            if needs_followers(settings):
                resources.enter_context(lead_followers(settings, "graph_gemma.runners.llm.follower"))
            self.loaded = load_model(settings, resources, check, status=self._status)
            super().__init__(self.loaded.model, tokenizer, ends, config.vocab_size, config.image_token_ids)
            # Also at the end of the program, before what the other ranks' end needs is torn down.
            self._close = weakref.finalize(self, resources.pop_all().close)

    def generate(
        self,
        prompts: PlainPrompt | list[str] | list[list[int]],
        sampling: Sampling = None,
        on_event: Callable[[int, TokenEvent], None] | None = None,
        **parameters: Any,
    ) -> list[RequestResult]:
        """Answer all prompts, as EngineDriver.generate. parameters: those of SamplingParams, in place of `sampling`."""
        return super().generate(prompts, sampling_of(sampling, parameters), on_event)

    def chat(
        self,
        messages: list[Message] | list[list[Message]],
        sampling: Sampling = None,
        on_event: Callable[[int, TokenEvent], None] | None = None,
        *,
        tools: Sequence[Any] | None = None,
        chat_template: str | None = None,
        **parameters: Any,
    ) -> list[RequestResult]:
        """The next turn of a chat, or of each of several; a result for each, as `generate` gives them.

        messages: dictionaries with ``role`` and ``content``. tools: functions or their JSON schemas, for a template
        that has a place for them. chat_template: in place of the tokenizer's, a Jinja template or a file of one.
        """
        chats = [messages] if messages and isinstance(messages[0], Mapping) else messages
        prompts = [chat_token_ids(self.tokenizer, chat, chat_template, tools) for chat in chats]  # type: ignore[arg-type]
        return self.generate(prompts, sampling, on_event, **parameters)

    def stream(self, prompt: Prompt, sampling: SamplingParams | None = None, **parameters: Any) -> Iterator[TokenEvent]:
        """The events of one prompt or chat, as they happen. Closing the iterator aborts the request."""
        return super().stream(prompt, sampling_of(sampling, parameters))  # type: ignore[arg-type]

    def generate_async(
        self, prompt: Prompt, sampling: SamplingParams | None = None, **parameters: Any
    ) -> AsyncIterator[TokenEvent]:
        """The events of one prompt or chat in an event loop, as EngineDriver.generate_async."""
        return super().generate_async(prompt, sampling_of(sampling, parameters))  # type: ignore[arg-type]

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt with the tokenizer's special tokens, or of a chat with those of its template."""
        if not isinstance(prompt, str) and prompt and isinstance(prompt[0], Mapping):
            return chat_token_ids(self.tokenizer, prompt)
        return super().encode(prompt)  # type: ignore[arg-type]

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
