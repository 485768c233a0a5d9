"""The prompts of a run, from the settings or a file, as token ids."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graph_gemma.graph_model.config import GemmaConfig
from graph_gemma.graph_model.errors import UserError, shown
from graph_gemma.runners.engine.admission import check_no_image
from graph_gemma.runners.io.tokenizer import chat_prompt
from graph_gemma.runners.settings.checking import check
from graph_gemma.runners.settings.declared.infer import InferSettings, Sampling
from graph_gemma.runners.settings.schema import Setting, members

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# What a line of a .jsonl file may set for its own prompt, under the names of the settings.
LINE_SETTINGS = ("max_new_tokens", "ignore_eos", "stop", "temperature", "top_k", "top_p", "seed")


@dataclass(frozen=True)
class Prompt:
    """What the model continues. `text` is None for prompts given as ids; for a chat it is the rendered template."""

    text: str | None
    token_ids: list[int]
    settings: dict[str, Any] = field(default_factory=dict)  # of its line in a file: what differs from the run's own


@dataclass(frozen=True)
class _Item:
    """A prompt as the user wrote it: text, messages, or ids. `source` names it in errors."""

    source: str
    content: str | list[dict[str, str]] | list[int]
    settings: dict[str, Any] = field(default_factory=dict)


def read_prompts(
    *,
    prompts: Sequence[str] | str | None = None,
    prompts_file: Path | str | None = None,
    prompt_token_ids: Sequence[Sequence[int]] | None = None,
    tokenizer: PreTrainedTokenizerBase | None,
    config: GemmaConfig,
    max_seq_len: int,
    chat: bool = False,
    chat_template: str | None = None,
) -> list[Prompt]:
    """The prompts of exactly one of the three sources, tokenized and checked.

    `prompts_file` is .txt (a prompt per line) or .jsonl: per line a list of chat messages, or an object with `prompt`
    or `messages` that may have LINE_SETTINGS, too. With `chat` each text is the user's first message. A prompt must
    leave room for one new token within `max_seq_len`. `tokenizer` may be None with `prompt_token_ids`. Raises UserError
    naming the prompt.
    """
    given = {"prompts": prompts, "prompts_file": prompts_file, "prompt_token_ids": prompt_token_ids}
    sources = [name for name, value in given.items() if value is not None]
    if len(sources) != 1:
        raise UserError(
            f"{' and '.join(sources)} are given; give one of them."
            if sources
            else "No prompt is given. Give prompts=[...], prompts_file=FILE or prompt_token_ids=[[...],...]."
        )
    if prompts_file is not None:
        items = _read_file(Path(prompts_file).expanduser())
    elif prompts is not None:
        items = _from_setting([prompts] if not _is_list(prompts) else list(prompts))
    else:
        items = _from_ids(prompt_token_ids)
    if not items:
        raise UserError(f"{sources[0]}: there is no prompt in it. Give at least one.")
    _check_chat(items, sources[0], chat, chat_template)
    result = [replace(_encode(item, tokenizer, chat, chat_template), settings=item.settings) for item in items]
    for item, prompt in zip(items, result, strict=True):
        _check_ids(item.source, prompt.token_ids, config, max_seq_len)
    return result


def _from_setting(values: list[Any]) -> list[_Item]:
    for index, value in enumerate(values):
        if not isinstance(value, str):
            raise UserError(
                f"prompts[{index}] is {shown(value)}, which is no text. Quote it within the list: prompts=['{value}']."
            )
    return [_Item(f"prompts[{index}]", value) for index, value in enumerate(values)]


def _from_ids(values: Any) -> list[_Item]:
    if not _is_list(values):
        raise UserError(f"prompt_token_ids is {shown(values)}; it must be a list of prompts, as in [[2,5,7],[2,9]].")
    items = []
    for index, ids in enumerate(values):
        source = f"prompt_token_ids[{index}]"
        if not _is_list(ids) or any(isinstance(i, bool) or not isinstance(i, int) for i in ids):
            raise UserError(
                f"{source} is {shown(ids)}; it must be a list of token ids, as in prompt_token_ids=[[2,5,7]]."
            )
        items.append(_Item(source, list(ids)))
    return items


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)  # Hydra's lists are no `list`


def _read_file(path: Path) -> list[_Item]:
    if path.suffix not in (".txt", ".jsonl"):
        raise UserError(
            f"prompts_file is {path}; its name must end in .txt (a prompt per line) or .jsonl (an object with "
            "'prompt' or 'messages' per line)."
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"prompts_file: {path} cannot be read ({error}). It must be a file of UTF-8 text.") from None
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    while lines and not lines[-1].strip():
        lines.pop()
    parse = _parse_json if path.suffix == ".jsonl" else _parse_text
    return [parse(f"{path}, line {number}", line) for number, line in enumerate(lines, 1)]


def _parse_text(source: str, line: str) -> _Item:
    if not line.strip():
        raise UserError(f"{source}: the line is empty. Each line is a prompt: remove the line or fill it.")
    return _Item(source, line)


def _parse_json(source: str, line: str) -> _Item:
    rule = "Each line must be a JSON object with 'prompt' (a text) or 'messages' (a list of {role, content})."
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{source}: not valid JSON ({error}). {rule}") from None
    if isinstance(value, list):
        value = {"messages": value}
    if not isinstance(value, dict) or ("prompt" in value) == ("messages" in value):
        raise UserError(f"{source}: it must have either 'prompt' or 'messages'. {rule}")
    settings = _line_settings(source, value)
    if "prompt" in value:
        if not isinstance(value["prompt"], str):
            raise UserError(f"{source}: 'prompt' is {shown(value['prompt'])}, which is no text. {rule}")
        return _Item(source, value["prompt"], settings)
    messages = value["messages"]
    if not isinstance(messages, list) or not messages or not all(map(_is_message, messages)):
        kinds = _kinds_of_parts(messages)
        if kinds:
            kind = next((kind for kind in kinds if kind != "text"), "text")
            raise UserError(
                f"{source}: the content of a message has a part of type {shown(kind)}. Only text is read, and a "
                "message's content is one text: leave out images, audio and files, and join parts of type 'text'."
            )
        raise UserError(
            f"{source}: 'messages' must be a list of at least one object with the texts 'role' and 'content'. {rule}"
        )
    return _Item(source, messages, settings)


def _line_settings(source: str, line: dict[str, Any]) -> dict[str, Any]:
    """What a line sets for its own prompt, by the names of SamplingParams. Raises UserError."""
    declared = {name: one for group in (InferSettings, Sampling) for name, one in members(group)}
    found = {name: value for name, value in line.items() if name not in ("prompt", "messages")}
    for name, value in found.items():
        one = declared.get(name)
        if name not in LINE_SETTINGS or not isinstance(one, Setting):
            raise UserError(
                f"{source}: there is no key {shown(name)}. A line has 'prompt' or 'messages', and for this prompt "
                f"{', '.join(LINE_SETTINGS)}."
            )
        try:
            found[name] = check(name, one, value)
        except UserError as error:
            raise UserError(f"{source}: {error}") from None
    return found


def _kinds_of_parts(messages: Any) -> list[Any]:
    """The types of the parts that messages of multimodal models have for a content."""
    listed = messages if isinstance(messages, list) else []
    contents = [message.get("content") for message in listed if isinstance(message, dict)]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    return [part.get("type") if isinstance(part, dict) else part for part in parts]


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(key), str) for key in ("role", "content"))


def _check_chat(items: list[_Item], source: str, chat: bool, chat_template: str | None) -> None:
    """A chat setting that would change nothing is a misunderstanding."""
    if chat and source == "prompt_token_ids":
        raise UserError(
            "chat=true cannot apply to prompt_token_ids, which are taken as they are. Give prompts=[...] instead."
        )
    if chat_template is not None and not chat and not any(_is_chat(item) for item in items):
        raise UserError("chat_template is given, but chat is off and no prompt has messages. Set chat=true.")


def _is_chat(item: _Item) -> bool:
    return isinstance(item.content, list) and isinstance(item.content[0], dict) if item.content else False


def _encode(item: _Item, tokenizer: PreTrainedTokenizerBase | None, chat: bool, chat_template: str | None) -> Prompt:
    content: Any = item.content
    if not content:
        raise UserError(f"{item.source}: the prompt is empty. A prompt needs at least one token.")
    if isinstance(content, list) and isinstance(content[0], int):
        return Prompt(None, content)
    if tokenizer is None:
        raise UserError(
            f"{item.source}: a text needs a tokenizer, and none is loaded. Give ids with prompt_token_ids=[[...]]."
        )
    if isinstance(content, str) and not chat:
        return Prompt(content, _token_ids(item.source, tokenizer, content, add_special_tokens=True))
    messages = [{"role": "user", "content": content}] if isinstance(content, str) else content
    try:
        text = chat_prompt(tokenizer, messages, chat_template)
    except UserError as error:
        raise UserError(f"{item.source}: {error}") from error.__cause__
    # The template has written the special tokens already.
    return Prompt(text, _token_ids(item.source, tokenizer, text, add_special_tokens=False))


def _token_ids(source: str, tokenizer: PreTrainedTokenizerBase, text: str, add_special_tokens: bool) -> list[int]:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(
            f"{source}: the prompt has a character that is no Unicode text, at position {error.start} (half of a "
            "surrogate pair, or a byte that is no UTF-8). Remove it."
        ) from None
    return list(tokenizer(text, add_special_tokens=add_special_tokens).input_ids)


def _check_ids(source: str, ids: list[int], config: GemmaConfig, max_seq_len: int) -> None:
    if not ids:
        raise UserError(f"{source}: the prompt is empty once it is tokenized. A prompt needs at least one token.")
    wrong = next((i for i in ids if not 0 <= i < config.vocab_size), None)
    if wrong is not None:
        raise UserError(
            f"{source}: the token id {shown(wrong)} is out of range; the model's vocabulary has the ids 0 to "
            f"{config.vocab_size - 1} (vocab_size in config.json). Leave out what it stands for."
        )
    check_no_image(ids, config.image_token_ids, source)
    if len(ids) >= max_seq_len:
        raise UserError(
            f"{source}: the prompt has {len(ids)} tokens, but max_seq_len is {max_seq_len} and one new token needs "
            f"room. Shorten the prompt to {max_seq_len - 1} tokens, or raise max_seq_len."
        )
