"""The checkpoint's own tokenizer and chat template; nothing is downloaded and no code of a checkpoint is run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graph_gemma.graph_model.errors import UserError, shown
from graph_gemma.graph_model.json_file import read_json_object
from graph_gemma.runners.io.bounded import run_bounded

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = Mapping[str, Any]
# Encoded when a tokenizer is loaded: letters, digits, punctuation, and characters that need bytes of fallback.
_SAMPLE = "A sample: 1 + 2 = 3, \u4f60\u597d."
_CLASSES_OF_5 = ("TokenizersBackend", "SentencePieceBackend", "PythonBackend")


def has_tokenizer(directory: Path) -> bool:
    """Whether a checkpoint directory holds a tokenizer."""
    return any((directory / name).is_file() for name in ("tokenizer.json", "tokenizer.model"))


def find_tokenizer(directory: Path | None) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a checkpoint directory; None where there is no directory, or no tokenizer in it."""
    return None if directory is None or not has_tokenizer(directory) else load_tokenizer(directory)


def load_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint directory, through transformers' AutoTokenizer.

    It may have more ids than the model's embedding has rows, as some checkpoints' do; a prompt with such an id is
    refused when it comes. Raises UserError where the tokenizer is absent or cannot be read, or encodes nothing.
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
        ids = tokenizer(_SAMPLE).input_ids  # some damaged files load, and fail when they are used
        tokenizer.decode(ids)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a damaged file can raise anything; a panic in Rust is not even an Exception
        raise UserError(
            f"{directory}: the tokenizer cannot be loaded ({type(error).__name__}: {' '.join(str(error).split())[:300]}"
            f"). {_way_out(directory)}"
        ) from error
    if not ids:
        raise UserError(
            f"{directory}: the tokenizer makes no token of the text {_SAMPLE!r}. Copy the tokenizer's files again from "
            "the original checkpoint."
        )
    return tokenizer


def end_of_answers(tokenizer: PreTrainedTokenizerBase | None) -> tuple[int, ...]:
    """The tokenizer's eos_token, which ends an answer besides the ids that the checkpoint's configs name.

    As with vLLM and lm-evaluation-harness: fine-tunes for chats name <end_of_turn> there, some there only.
    """
    end = getattr(tokenizer, "eos_token_id", None)  # a bare tokenizers.Tokenizer names none
    return () if end is None else (int(end),)


def _way_out(directory: Path) -> str:
    """What to do about a tokenizer that transformers does not load."""
    import transformers

    if not (directory / "tokenizer.json").is_file() and find_spec("sentencepiece") is None:
        return (
            "There is only tokenizer.model, a SentencePiece file, and the package sentencepiece that reads it is not "
            "installed: pip install sentencepiece. Or add tokenizer.json from the original checkpoint, which needs no "
            "further package."
        )
    path = directory / "tokenizer_config.json"
    raw = read_json_object(path) if path.is_file() else {}
    newer = raw.get("tokenizer_class") in _CLASSES_OF_5 or isinstance(raw.get("extra_special_tokens"), list)
    if newer and int(transformers.__version__.split(".")[0]) < 5:
        return (
            f"{path.name} was written by transformers 5, and the installed version is {transformers.__version__}: "
            "pip install 'transformers>=5,<6'."
        )
    return "Copy the tokenizer's files again from the original checkpoint; a tokenizer.json needs no further package."


def chat_prompt(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    chat_template: str | None = None,
    add_generation_prompt: bool = True,
    tools: Sequence[Any] | None = None,
) -> str:
    """The prompt text for the model's next turn after `messages`, each with `role` and `content`.

    `chat_template` is a Jinja template or the path of a file that holds one; None takes the tokenizer's. The template
    writes special tokens itself: encode the text with add_special_tokens=False. tools: functions or their JSON schemas,
    as transformers' apply_chat_template takes them. Raises UserError.
    """
    template = None if chat_template is None else _template_text(chat_template)
    if template is None and not tokenizer.chat_template:
        raise UserError(
            "chat: this checkpoint's tokenizer has no chat template, so it was probably not trained on dialogue. "
            "Give one with chat_template=TEXT or chat_template=FILE, or leave chat off."
        )
    offered: dict[str, Any] = {} if not tools else {"tools": list(tools)}
    if offered and "tools" not in str(template or tokenizer.chat_template):
        raise UserError(
            "chat: tools are given, and the chat template has no place for them. Describe them in a message, or give "
            "chat_template=FILE, one that has."
        )
    try:
        text = run_bounded(
            lambda: str(
                tokenizer.apply_chat_template(
                    [dict(message) for message in messages],
                    chat_template=template,
                    tokenize=False,
                    add_generation_prompt=add_generation_prompt,
                    **offered,
                )
            )
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


def chat_token_ids(
    tokenizer: PreTrainedTokenizerBase | None,
    messages: Sequence[Message],
    chat_template: str | None = None,
    tools: Sequence[Any] | None = None,
) -> list[int]:
    """Token ids of `chat_prompt`, whose template has written the special tokens already. Raises UserError."""
    if tokenizer is None:
        raise UserError("A chat needs a tokenizer with a chat template, and there is none. Give token ids to generate.")
    for message in messages:
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise UserError(
                f"chat: a message is {shown(message)}; each must be a dictionary with 'role' and 'content', such as "
                "{'role': 'user', 'content': 'Hello'}."
            )
    if not messages:
        raise UserError("chat: there is no message. Give at least one, of the role user.")
    text = chat_prompt(tokenizer, messages, chat_template, tools=tools)
    return list(tokenizer(text, add_special_tokens=False).input_ids)


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
