"""The demo's tokenizer: byte-level BPE in which every word of the tiny world is one token."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

PAD, EOS, BOS, UNK = "<pad>", "<eos>", "<bos>", "<unk>"
START_OF_TURN, END_OF_TURN = "<start_of_turn>", "<end_of_turn>"
SPECIAL_TOKENS = (PAD, EOS, BOS, UNK, START_OF_TURN, END_OF_TURN)  # their ids are 0, 1, 2, ...
BOS_ID, EOS_ID, PAD_ID, END_OF_TURN_ID = (SPECIAL_TOKENS.index(t) for t in (BOS, EOS, PAD, END_OF_TURN))

# Turns as Gemma writes them; the assistant's name is "model", and there is no system turn.
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] not in ['user', 'assistant', 'model'] %}"
    "{{ raise_exception('Only user and assistant turns are known, not ' + message['role']) }}"
    "{% endif %}"
    "{% set role = 'user' if message['role'] == 'user' else 'model' %}"
    "{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train on `texts` until `vocab_size` tokens; what the texts do not fill is reserved tokens.

    Any text round-trips, as all 256 bytes are tokens. Encoding puts <bos> before the text.
    """
    tokenizer = Tokenizer(models.BPE(unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=1,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    missing = vocab_size - tokenizer.get_vocab_size()
    reserved = [f"<reserved_{i}>" for i in range(missing)]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in reserved])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, BOS_ID)]
    )
    return tokenizer


def tokenizer_files(tokenizer: Tokenizer, max_length: int) -> dict[str, str]:
    """The files that transformers' AutoTokenizer reads, by name; the same text for every version of tokenizers."""
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "unk_token": UNK,
        "additional_special_tokens": [START_OF_TURN, END_OF_TURN],
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": max_length,
        "padding_side": "left",
        "chat_template": CHAT_TEMPLATE,
    }
    return {
        "tokenizer.json": _portable_json(tokenizer),
        "tokenizer_config.json": json.dumps(config, indent=2) + "\n",
    }


def load_tokenizer(checkpoint_dir: Path) -> Tokenizer:
    """The tokenizer of a demo checkpoint, without transformers."""
    return Tokenizer.from_file(str(checkpoint_dir / "tokenizer.json"))


def _portable_json(tokenizer: Tokenizer) -> str:
    """tokenizer.json as tokenizers 0.15 reads it: since 0.20 merges are written as pairs, before as "left right"."""
    raw = json.loads(tokenizer.to_str())
    raw["model"]["merges"] = [m if isinstance(m, str) else " ".join(m) for m in raw["model"]["merges"]]
    return json.dumps(raw, ensure_ascii=False, separators=(",", ":")) + "\n"
