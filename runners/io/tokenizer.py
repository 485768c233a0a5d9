"""The checkpoint's own tokenizer and chat template; nothing is downloaded and no code of a checkpoint is run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from graph_model.config import GemmaConfig
from graph_model.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = Mapping[str, str]


def has_tokenizer(directory: Path) -> bool:
    """Whether a checkpoint directory holds a tokenizer."""
    return any((directory / name).is_file() for name in ("tokenizer.json", "tokenizer.model"))


def load_tokenizer(directory: Path, config: GemmaConfig) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint directory, through transformers' AutoTokenizer.

    Raises UserError where it is absent, unreadable, or has ids that the model's embedding lacks.
    """
    if not has_tokenizer(directory):
        raise UserError(
            f"{directory} holds no tokenizer: neither tokenizer.json nor tokenizer.model is there. Copy the "
            "tokenizer's files from the original checkpoint, or give token ids with prompt_token_ids=[[...]]."
        )
    # Importing transformers takes seconds, which a run on token ids need not wait for.
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(directory), local_files_only=True, trust_remote_code=False)
        largest = max(tokenizer.get_vocab().values())
    except Exception as error:  # a damaged file can raise anything
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"{directory}: the tokenizer cannot be loaded ({type(error).__name__}: {reason}). Copy the tokenizer's "
            "files again from the original checkpoint; a tokenizer.json needs no further package."
        ) from error
    if largest >= config.vocab_size:
        raise UserError(
            f"{directory}: the tokenizer has ids up to {largest}, but the model's embedding ends at "
            f"{config.vocab_size - 1} (vocab_size in config.json). Tokenizer and weights must belong together: copy "
            "both from the same original."
        )
    return tokenizer


def chat_prompt(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    chat_template: str | None = None,
    add_generation_prompt: bool = True,
) -> str:
    """The prompt text for the model's next turn after `messages`, each with `role` and `content`.

    `chat_template` is a Jinja template or the path of a file that holds one; None takes the tokenizer's. The template
    writes special tokens itself: encode the text with add_special_tokens=False. Raises UserError.
    """
    template = None if chat_template is None else _template_text(chat_template)
    if template is None and not tokenizer.chat_template:
        raise UserError(
            "chat: this checkpoint's tokenizer has no chat template, so it was probably not trained on dialogue. "
            "Give one with chat_template=TEXT or chat_template=FILE, or leave chat off."
        )
    try:
        text = tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            chat_template=template,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
        )
    except Exception as error:  # whatever the template's author let it raise
        source = "the tokenizer's chat template" if chat_template is None else f"chat_template {chat_template!r}"
        roles = ", ".join(str(message.get("role")) for message in messages)
        raise UserError(
            f"chat: {source} rejects the messages with roles {roles} ({' '.join(str(error).split())[:300]}). "
            "Change the messages or the template."
        ) from error
    assert isinstance(text, str)
    return text


def _template_text(chat_template: str) -> str:
    if "{{" in chat_template or "{%" in chat_template:
        return chat_template
    path = Path(chat_template).expanduser()
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise UserError(
            f"chat_template is {chat_template!r}: it is neither a Jinja template, which would have '{{{{' or '{{%' in "
            f"it, nor a readable file ({error})."
        ) from None
    if "{{" not in text and "{%" not in text:
        raise UserError(f"chat_template: the file {path} is not a Jinja template; it has no '{{{{' or '{{%' in it.")
    return text
