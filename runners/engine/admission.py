"""Admission checks: a request is refused if the engine could not serve it even alone."""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterable

from graph_gemma.graph_model.errors import UserError
from graph_gemma.runners.engine.block_manager import BlockManager
from graph_gemma.runners.engine.sampling_params import SamplingParams


def check_no_image(token_ids: Iterable[int], image_token_ids: Collection[int], source: str = "A prompt") -> None:
    """Raise UserError if a prompt has a token that stands for an image."""
    found = next((i for i in token_ids if i in image_token_ids), None) if image_token_ids else None
    if found is not None:
        raise UserError(
            f"{source}: the token id {found} stands for an image (config.json names it), and images are not read: the "
            "text part of the model is loaded alone. Leave the image out of the prompt."
        )


def check_prompt(
    prompt: Iterable[int], max_seq_len: int, vocab_size: int | None, image_token_ids: Collection[int] = ()
) -> array[int]:
    """The token ids of a prompt. Raises UserError unless they are of the vocabulary and leave room for an answer."""
    try:
        token_ids = array("q", prompt)
    except (TypeError, OverflowError) as error:
        raise UserError(f"A prompt's token ids must be integers ({error}).") from None
    if not token_ids:
        raise UserError("A prompt is empty. A prompt needs at least one token.")
    if len(token_ids) >= max_seq_len:
        raise UserError(
            f"max_seq_len: a prompt has {len(token_ids)} tokens and max_seq_len is {max_seq_len}, which prompt and "
            "answer share; a prompt must leave room for at least one token. Shorten the prompt or raise max_seq_len."
        )
    wrong = [i for i in (min(token_ids), max(token_ids)) if i < 0 or (vocab_size and i >= vocab_size)]
    if wrong:
        raise UserError(
            f"A prompt holds the token id {wrong[0]}; ids must be at least 0"
            + (f" and below the vocabulary size, {vocab_size}." if vocab_size else ".")
        )
    check_no_image(token_ids, image_token_ids)
    return token_ids


def check_room(num_prompt_tokens: int, sampling: SamplingParams, max_tokens: int, blocks: BlockManager) -> None:
    """Raise UserError if the cache is too small for a sequence of `max_tokens` tokens, even alone."""
    # The last token of an answer is never put into the cache.
    num_blocks = blocks.blocks_of(max_tokens - 1)
    if num_blocks > blocks.num_usable:
        raise UserError(
            f"num_blocks: a request of {num_prompt_tokens} prompt tokens and max_new_tokens {sampling.max_new_tokens} "
            f"may need {num_blocks} blocks of {blocks.block_size} tokens, and the cache has {blocks.num_usable} for "
            "all requests. Raise num_blocks or the memory fraction, or lower max_new_tokens or the prompt's length."
        )
