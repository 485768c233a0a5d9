"""Prompts and sampling parameters of a run, from its settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from graph_gemma.graph_model.errors import UserError
from graph_gemma.runners import demo
from graph_gemma.runners.engine.sampling_params import SamplingParams
from graph_gemma.runners.io.prompts import Prompt, read_prompts
from graph_gemma.runners.io.tokenizer import has_tokenizer, load_tokenizer
from graph_gemma.runners.settings.declared.infer import InferSettings
from graph_gemma.runners.settings.model_settings import ModelSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Inputs:
    """Prompts with their sampling parameters, and the tokenizer where there is one."""

    prompts: list[Prompt]
    sampling: list[SamplingParams]
    tokenizer: PreTrainedTokenizerBase | None


def read_inputs(settings: InferSettings, model: ModelSettings) -> Inputs:
    """Check and tokenize what the settings ask for. Raises UserError."""
    sampling_params(settings)  # what is wrong with it is said before the prompts are read
    tokenizer = _tokenizer(settings, model)
    prompts = read_prompts(
        prompts=_prompts(settings, model),
        prompts_file=settings.prompts_file,
        prompt_token_ids=settings.prompt_token_ids,
        tokenizer=tokenizer,
        config=model.config,
        max_seq_len=model.max_seq_len,
        chat=settings.chat,
        chat_template=settings.chat_template,
    )
    return Inputs(
        prompts, [sampling_params(settings, index, prompt.settings) for index, prompt in enumerate(prompts)], tokenizer
    )


def _prompts(settings: InferSettings, model: ModelSettings) -> Sequence[str] | None:
    sources = (settings.prompts, settings.prompts_file, settings.prompt_token_ids)
    if model.checkpoint_dir == demo.CHECKPOINT_DIR and all(source is None for source in sources):
        from graph_gemma.runners.demo.world import demo_prompts

        return demo_prompts()
    return settings.prompts


def _tokenizer(settings: InferSettings, model: ModelSettings) -> PreTrainedTokenizerBase | None:
    """The checkpoint's tokenizer; a run on token ids can do without."""
    has_one = model.checkpoint_dir is not None and has_tokenizer(model.checkpoint_dir)
    if settings.prompt_token_ids is not None and not has_one:
        return None
    if model.checkpoint_dir is None:
        raise UserError(
            "weights=random without model.path has no tokenizer, so prompts must be token ids: give "
            "prompt_token_ids=[[2,5,7]]."
        )
    return load_tokenizer(model.checkpoint_dir)


def sampling_params(
    settings: InferSettings, index: int = 0, own: Mapping[str, Any] = MappingProxyType({})
) -> SamplingParams:
    """The sampling parameters of prompt number `index`, whose random numbers are its own.

    own: what the prompt's line in a file sets.
    """
    given = settings.sampling
    values: dict[str, Any] = {
        "temperature": given.temperature,
        "top_k": given.top_k,
        "top_p": given.top_p,
        "seed": None if given.seed is None else given.seed + index,
        "max_new_tokens": settings.max_new_tokens,
        "ignore_eos": settings.ignore_eos,
        "stop": settings.stop,
    }
    return SamplingParams(**{**values, **own})
