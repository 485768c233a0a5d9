"""A tokenizer of single characters, saved as checkpoints save theirs."""

from __future__ import annotations

from pathlib import Path

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "<{{ m.role }}>{{ m.content }}</{{ m.role }}>"
    "{% endfor %}{% if add_generation_prompt %}<model>{% endif %}"
)

PAD, EOS, BOS, UNK = 0, 1, 2, 3
CHARACTERS = [chr(code) for code in range(32, 127)]
VOCABULARY = ["<pad>", "<eos>", "<bos>", "<unk>", *CHARACTERS]


def make_tokenizer(directory: Path, chat_template: str | None = CHAT_TEMPLATE, size: int = len(VOCABULARY)) -> None:
    """Save the tokenizer's files: `VOCABULARY`, filled up to `size` ids; <bos> comes before a prompt."""
    from tokenizers import Tokenizer, decoders, models, processors
    from transformers import PreTrainedTokenizerFast

    tokens = VOCABULARY + [f"<unused{i}>" for i in range(size - len(VOCABULARY))]
    tokenizer = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, [], unk_token="<unk>"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", BOS)]
    )
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token="<unk>",
        chat_template=chat_template,
    )
    fast.save_pretrained(directory)


def ids_of(text: str) -> list[int]:
    """The ids of a text without special tokens."""
    return [VOCABULARY.index(character) for character in text]
