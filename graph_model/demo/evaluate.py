"""How good a demo checkpoint is: held-out comprehension accuracy and held-out story perplexity.

``python -m graph_model.demo.evaluate [CHECKPOINT_DIR]`` prints both.
"""

from __future__ import annotations

import argparse
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor

from graph_model.config import read_config
from graph_model.demo import CHECKPOINT_DIR
from graph_model.demo.comprehension import Item
from graph_model.demo.tokenizer import EOS_ID, PAD_ID, load_tokenizer
from graph_model.demo.world import held_out_items, held_out_stories
from graph_model.gemma import GemmaForCausalLM


@dataclass(frozen=True)
class Accuracy:
    """Shares of items answered right, of all and by the kind of word that is asked for."""

    total: float
    by_kind: dict[str, float]


def load_model(checkpoint_dir: Path, dtype: torch.dtype = torch.float32) -> GemmaForCausalLM:
    """The plain model with the checkpoint's weights (which are bfloat16), computing in `dtype`."""
    model = GemmaForCausalLM(read_config(checkpoint_dir))
    weights = load_file(checkpoint_dir / "model.safetensors")
    model.load_state_dict({"lm_head.weight": weights["model.embed_tokens.weight"], **weights})
    return model.to(dtype).eval()


@torch.inference_mode()
def measure_accuracy(model: GemmaForCausalLM, tokenizer: Tokenizer, items: Sequence[Item]) -> Accuracy:
    """Compare the log-probabilities of " yes" and " no" after each prompt."""
    yes, no = (tokenizer.encode(text, add_special_tokens=False).ids for text in (" yes", " no"))
    if len(yes) != 1 or len(no) != 1:
        raise ValueError("' yes' and ' no' must be one token each")
    prompts = [tokenizer.encode(item.prompt).ids for item in items]
    right: dict[str, list[bool]] = defaultdict(list)
    order = sorted(range(len(items)), key=lambda i: len(prompts[i]))
    for start in range(0, len(order), 64):
        chosen = order[start : start + 64]
        logits = _forward(model, [prompts[i] for i in chosen])
        last = torch.tensor([len(prompts[i]) - 1 for i in chosen])
        logprobs = logits[torch.arange(len(chosen)), last].float().log_softmax(-1)  # [batch, vocab_size]
        says_yes = (logprobs[:, yes[0]] > logprobs[:, no[0]]).tolist()
        for i, answer in zip(chosen, says_yes, strict=True):
            right[items[i].kind].append(answer == items[i].answer)
    by_kind = {kind: sum(hits) / len(hits) for kind, hits in sorted(right.items())}
    return Accuracy(sum(map(sum, right.values())) / len(items), by_kind)


@torch.inference_mode()
def measure_perplexity(model: GemmaForCausalLM, tokenizer: Tokenizer, texts: Sequence[str]) -> float:
    """exp of the mean negative log-likelihood of the texts' tokens, each text's closing <eos> included."""
    sequences = [[*tokenizer.encode(text).ids, EOS_ID] for text in texts]
    total, tokens = 0.0, 0
    for start in range(0, len(sequences), 32):
        batch = sequences[start : start + 32]
        logits = _forward(model, batch)
        targets = _pad(batch)
        for row, ids in enumerate(batch):
            n = len(ids) - 1
            total += F.cross_entropy(logits[row, :n].float(), targets[row, 1 : n + 1], reduction="sum").item()
            tokens += n
    return math.exp(total / tokens)


@torch.inference_mode()
def generate_greedily(model: GemmaForCausalLM, prompt_ids: list[int], max_new_tokens: int) -> list[int]:
    """Continue one prompt by the likeliest tokens up to and with a token that ends it; no cache, so short texts."""
    ids = list(prompt_ids)
    ends = model.model.config.eos_token_ids
    while len(ids) < len(prompt_ids) + max_new_tokens and (len(ids) == len(prompt_ids) or ids[-1] not in ends):
        ids.append(int(_forward(model, [ids])[0, -1].argmax()))
    return ids[len(prompt_ids) :]


def _forward(model: GemmaForCausalLM, sequences: list[list[int]]) -> Tensor:
    """Logits of the sequences padded on the right, which causal attention does not see."""
    ids = _pad(sequences)
    return model(ids, torch.arange(ids.shape[1]).expand_as(ids))


def _pad(sequences: list[list[int]]) -> Tensor:
    longest = max(map(len, sequences))
    return torch.tensor([ids + [PAD_ID] * (longest - len(ids)) for ids in sequences])


def main() -> None:
    parser = argparse.ArgumentParser(description="Held-out accuracy and perplexity of a demo checkpoint.")
    parser.add_argument("checkpoint_dir", nargs="?", type=Path, default=CHECKPOINT_DIR)
    parser.add_argument("--items", type=int, default=2000, help="held-out items (default 2000)")
    parser.add_argument("--stories", type=int, default=200, help="held-out stories (default 200)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    args = parser.parse_args()
    model = load_model(args.checkpoint_dir, getattr(torch, args.dtype))
    tokenizer = load_tokenizer(args.checkpoint_dir)
    print_report(model, tokenizer, args.items, args.stories)


def print_report(model: GemmaForCausalLM, tokenizer: Tokenizer, items: int, stories: int) -> None:
    accuracy = measure_accuracy(model, tokenizer, held_out_items(items))
    perplexity = measure_perplexity(model, tokenizer, held_out_stories(stories))
    print(f"held-out items:   accuracy {accuracy.total:.4f} of {items}")
    for kind, share in accuracy.by_kind.items():
        print(f"  {kind:10} {share:.4f}")
    print(f"held-out stories: perplexity {perplexity:.3f} of {stories}")


if __name__ == "__main__":
    main()
