"""How good a demo checkpoint is: held-out comprehension accuracy, held-out story perplexity and coherence.

``python -m graph_gemma.runners.demo.training.evaluate [CHECKPOINT_DIR]`` prints them.
"""

from __future__ import annotations

import argparse
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor

from graph_gemma.graph_model.config_file import read_config
from graph_gemma.graph_model.families import family_of
from graph_gemma.graph_model.families.definition import GemmaForCausalLM
from graph_gemma.runners.demo import CHECKPOINT_DIR
from graph_gemma.runners.demo.comprehension import Item
from graph_gemma.runners.demo.training.coherence import is_coherent
from graph_gemma.runners.demo.training.tokenizer import EOS_ID, PAD_ID, load_tokenizer
from graph_gemma.runners.demo.world import held_out_items, held_out_stories

# Logits [rows, tokens, vocab_size] of token ids; rows may be padded on the right.
Logits = Callable[[list[list[int]]], Tensor]


@dataclass(frozen=True)
class Accuracy:
    """Shares of items answered right, of all and by the kind of word that is asked for."""

    total: float
    by_kind: dict[str, float]


def load_model(checkpoint_dir: Path, dtype: torch.dtype = torch.float32) -> GemmaForCausalLM:
    """The plain model with the checkpoint's weights (which are bfloat16), computing in `dtype`."""
    config = read_config(checkpoint_dir)
    model = GemmaForCausalLM(config, family_of(config).layers)
    weights = load_file(checkpoint_dir / "model.safetensors")
    model.load_state_dict({"lm_head.weight": weights["model.embed_tokens.weight"], **weights})
    return model.to(dtype).eval()


def measure_accuracy(model: GemmaForCausalLM, tokenizer: Tokenizer, items: Sequence[Item]) -> Accuracy:
    """Of the plain model; see `right_answers`."""
    hits = right_answers(partial(_forward, model), tokenizer, items, rows=64)
    right: dict[str, list[bool]] = defaultdict(list)
    for item, hit in zip(items, hits, strict=True):
        right[item.kind].append(hit)
    by_kind = {kind: sum(found) / len(found) for kind, found in sorted(right.items())}
    return Accuracy(sum(hits) / len(items), by_kind)


def measure_perplexity(model: GemmaForCausalLM, tokenizer: Tokenizer, texts: Sequence[str]) -> float:
    """exp of the mean negative log-likelihood of the texts' tokens, each text's closing <eos> included."""
    losses = text_losses(partial(_forward, model), tokenizer, texts, rows=32)
    return math.exp(sum(loss for loss, _ in losses) / sum(tokens for _, tokens in losses))


def measure_coherence(model: GemmaForCausalLM, tokenizer: Tokenizer, stories: Sequence[str]) -> float:
    """The share of stories that, continued greedily from their first sentence, the world could have told."""
    told = continue_greedily(model, [tokenizer.encode(first_sentence(story)).ids for story in stories], 150)
    return sum(is_coherent(tokenizer.decode(ids)) for ids in told) / len(stories)


def first_sentence(story: str) -> str:
    return story[: story.index(".") + 1]


@torch.inference_mode()
def right_answers(logits_of: Logits, tokenizer: Tokenizer, items: Sequence[Item], rows: int) -> list[bool]:
    """Whether the likelier of " yes" and " no" after each prompt is the answer; `rows` prompts at a time."""
    yes, no = (tokenizer.encode(text, add_special_tokens=False).ids for text in (" yes", " no"))
    if len(yes) != 1 or len(no) != 1:
        raise ValueError("' yes' and ' no' must be one token each")
    prompts = [tokenizer.encode(item.prompt).ids for item in items]
    right = [False] * len(items)
    order = sorted(range(len(items)), key=lambda i: len(prompts[i]))
    for start in range(0, len(order), rows):
        chosen = order[start : start + rows]
        logits = logits_of([prompts[i] for i in chosen])
        for row, i in enumerate(chosen):
            last = logits[row, len(prompts[i]) - 1]
            right[i] = bool(last[yes[0]] > last[no[0]]) == items[i].answer
    return right


@torch.inference_mode()
def text_losses(logits_of: Logits, tokenizer: Tokenizer, texts: Sequence[str], rows: int) -> list[tuple[float, int]]:
    """The negative log-likelihood of each text with its closing <eos>, and of how many tokens."""
    sequences = [[*tokenizer.encode(text).ids, EOS_ID] for text in texts]
    losses = []
    for start in range(0, len(sequences), rows):
        batch = sequences[start : start + rows]
        logits = logits_of(batch)
        for row, ids in enumerate(batch):
            n = len(ids) - 1
            losses.append((F.cross_entropy(logits[row, :n].float(), torch.tensor(ids[1:]), reduction="sum").item(), n))
    return losses


def generate_greedily(model: GemmaForCausalLM, prompt_ids: list[int], max_new_tokens: int) -> list[int]:
    """What continues one prompt by the most likely tokens, up to and with a token that ends it."""
    return continue_greedily(model, [prompt_ids], max_new_tokens)[0][len(prompt_ids) :]


@torch.inference_mode()
def continue_greedily(
    model: GemmaForCausalLM, prompts: Sequence[list[int]], max_new_tokens: int, rows: int = 32
) -> list[list[int]]:
    """Each prompt with its most likely tokens, up to and with one that ends it; no cache, so short texts."""
    ends = model.model.config.eos_token_ids
    texts = [list(prompt) for prompt in prompts]
    for start in range(0, len(texts), rows):
        going = texts[start : start + rows]
        for _ in range(max_new_tokens):
            if not going:
                break
            logits = _forward(model, going)
            for ids, row in zip(going, logits, strict=True):
                ids.append(int(row[len(ids) - 1].argmax()))
            going = [ids for ids in going if ids[-1] not in ends]
    return texts


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
    coherence = measure_coherence(model, tokenizer, held_out_stories(stories))
    print(f"held-out stories: perplexity {perplexity:.3f}, coherence {coherence:.3f} of {stories}")


if __name__ == "__main__":
    main()
