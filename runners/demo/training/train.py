"""Train the demo checkpoint from nothing: tokenizer, model, files, evaluation.

``python -m graph_gemma.runners.demo.training.train --output-dir DIR`` does all of it. The texts, their order and
the initial weights depend on the seed alone; the trained weights also on how the machine rounds, so that another
machine's checkpoint is as good, but not bit-equal.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from graph_gemma.graph_model.config import GemmaConfig
from graph_gemma.graph_model.families import family_of
from graph_gemma.graph_model.families.definition import GemmaForCausalLM
from graph_gemma.runners.demo.training.documents import (
    Document,
    chat_documents,
    exercise_documents,
    first_exercise_documents,
    item_documents,
    mixed_documents,
    story_documents,
)
from graph_gemma.runners.demo.training.evaluate import load_model, measure_accuracy, measure_coherence, print_report
from graph_gemma.runners.demo.training.muon import Muon
from graph_gemma.runners.demo.training.tokenizer import (
    BOS_ID,
    END_OF_TURN_ID,
    EOS_ID,
    PAD_ID,
    load_tokenizer,
    tokenizer_files,
    train_tokenizer,
)
from graph_gemma.runners.demo.world import held_out_items, held_out_stories

CONFIG = GemmaConfig(
    vocab_size=1024,
    hidden_size=128,
    intermediate_size=512,
    num_hidden_layers=4,
    num_attention_heads=8,
    num_key_value_heads=1,
    head_dim=64,
    max_position_embeddings=1024,
    bos_token_id=BOS_ID,
    eos_token_ids=(EOS_ID, END_OF_TURN_ID),
)
TOKENIZER_TEXTS = 12000  # enough that every word of the world occurs
MATRIX_LEARNING_RATE, OTHER_LEARNING_RATE = 0.02, 3e-3
WARMUP_STEPS = 100
CONTEXT_EVERY = 8  # a step in so many is on a whole context, in which many documents follow each other
LAST_MIXTURE = (
    (0.35, exercise_documents),
    (0.15, item_documents),
    (0.35, story_documents),
    (0.15, chat_documents),
)
# Behind the mixtures, with a learning rate that starts at this share of its peak: stories keep to their words.
POLISH_STEPS, POLISH_RATE = 4000, 0.3
POLISH_MIXTURE = (
    (0.1, exercise_documents),
    (0.1, item_documents),
    (0.6, story_documents),
    (0.2, chat_documents),
)
ROWS, CONTEXT_ROWS = (14, 136), (1, CONFIG.max_position_embeddings)  # rows x tokens


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the demo checkpoint.")
    parser.add_argument("--output-dir", type=Path, required=True, help="gets the files when training is done")
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--polish-steps", type=int, default=POLISH_STEPS)
    parser.add_argument("--polish-only", type=Path, metavar="DIR", help="begin with this checkpoint, not from nothing")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-compile", action="store_true", help="do without torch.compile (no C++ compiler)")
    args = parser.parse_args()
    if args.output_dir.exists() and not args.output_dir.is_dir():
        parser.error(f"--output-dir: {args.output_dir} is a file; give a directory")
    torch.set_num_threads(args.threads)
    if args.polish_only is None:
        tokenizer = train_tokenizer(tokenizer_texts(args.seed), CONFIG.vocab_size)
        model = train_model(tokenizer, args.steps, args.seed, not args.no_compile)
    else:
        tokenizer, model = load_tokenizer(args.polish_only), load_model(args.polish_only)
    polish(model, tokenizer, args.polish_steps, args.seed, not args.no_compile)
    save_checkpoint(model, tokenizer, args.output_dir)
    print_report(load_model(args.output_dir), load_tokenizer(args.output_dir), 2000, 200)


def tokenizer_texts(seed: int) -> list[str]:
    """Training documents of every sort, without their special tokens."""
    sources = [(0.2, item_documents), (0.2, exercise_documents), (0.4, story_documents), (0.2, chat_documents)]
    documents = islice(mixed_documents(sources, seed), TOKENIZER_TEXTS)
    return [piece.text for document in documents for piece in document if not piece.text.startswith("<")]


def train_model(tokenizer: Tokenizer, steps: int, seed: int, use_compile: bool) -> GemmaForCausalLM:
    """The model after so many steps from random weights."""
    torch.manual_seed(seed)
    model = GemmaForCausalLM(CONFIG, family_of(CONFIG).layers)
    initialize(model)
    rates = [schedule(step, steps) for step in range(steps)]
    fit(model, tokenizer, training_batches(tokenizer, steps, seed), rates, use_compile)
    return model.eval()


def polish(model: GemmaForCausalLM, tokenizer: Tokenizer, steps: int, seed: int, use_compile: bool) -> None:
    """Go on at a low learning rate, mostly with stories, until they keep to their words."""
    documents = mixed_documents(POLISH_MIXTURE, f"polish {seed}")
    rates = [POLISH_RATE * min(1.0, (step + 1) / WARMUP_STEPS) * (1 - step / steps) for step in range(steps)]
    fit(model.train(), tokenizer, batches(tokenizer, documents, steps), rates, use_compile)
    model.eval()


def fit(
    model: GemmaForCausalLM,
    tokenizer: Tokenizer,
    data: Iterator[tuple[Tensor, Tensor]],
    rates: list[float],
    use_compile: bool,
) -> None:
    """A step of weighted next-token loss per learning rate, which is a share of the optimizers' peak."""
    optimizers = make_optimizers(model)

    def weighted_loss(ids: Tensor, weights: Tensor) -> Tensor:
        positions = torch.arange(ids.shape[1]).expand_as(ids)
        logits = model(ids, positions)[:, :-1]
        losses = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        return (losses * weights[:, 1:].flatten()).sum() / weights.sum()

    step_loss = torch.compile(weighted_loss, dynamic=False) if use_compile else weighted_loss
    items, stories = held_out_items(240), held_out_stories(16)
    started = time.perf_counter()
    for step, (rate, (ids, weights)) in enumerate(zip(rates, data, strict=True), start=1):
        for optimizer, peak in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = peak * rate
            optimizer.zero_grad(set_to_none=True)
        loss = step_loss(ids, weights)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, _ in optimizers:
            optimizer.step()
        if step % 100 == 0:
            accuracy, coherence = (
                measure_accuracy(model, tokenizer, items).total,
                measure_coherence(model, tokenizer, stories),
            )
            seconds = time.perf_counter() - started
            print(
                f"step {step}, {seconds:.0f} s: loss {loss.item():.3f}, accuracy {accuracy:.3f}, "
                f"coherence {coherence:.3f}",
                flush=True,
            )


def make_optimizers(model: GemmaForCausalLM) -> list[tuple[torch.optim.Optimizer, float]]:
    """Muon for the matrices, AdamW for embedding and norms; each with its peak learning rate."""
    parameters = dict(model.named_parameters())
    matrices = {n: p for n, p in parameters.items() if p.dim() == 2 and "embed_tokens" not in n}
    others = [p for n, p in parameters.items() if n not in matrices]
    adamw = torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    return [(Muon(matrices.values(), MATRIX_LEARNING_RATE), MATRIX_LEARNING_RATE), (adamw, OTHER_LEARNING_RATE)]


def initialize(model: GemmaForCausalLM) -> None:
    """Normal weights; what writes to the residual stream is smaller with depth, embeddings suit the tied head."""
    depth_scale = (2 * CONFIG.num_hidden_layers) ** -0.5
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "embed_tokens" in name:
                parameter.normal_(std=0.02)
            elif parameter.dim() == 2:
                writes = "o_proj" in name or "down_proj" in name
                parameter.normal_(std=parameter.shape[1] ** -0.5 * (depth_scale if writes else 1.0))


def schedule(step: int, steps: int) -> float:
    """Factor on the learning rate: linear warm-up, constant for the first half, then linear down to a fiftieth."""
    warm_up = min(1.0, (step + 1) / WARMUP_STEPS)
    return warm_up * min(1.0, max(0.02, 2 * (1 - step / steps)))


def training_batches(tokenizer: Tokenizer, steps: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Per step a batch of token ids and loss weights, both [rows, tokens].

    Looking a word up in a passage is learned first and from exercises alone: together with stories it is not learned.
    """
    stages = [
        (0.15, mixed_documents([(1.0, first_exercise_documents)], seed)),
        (0.4, mixed_documents([(1.0, exercise_documents)], seed)),
        (1.0, mixed_documents(LAST_MIXTURE, seed)),
    ]
    begin = 0
    for until, documents in stages:
        end = round(until * steps)
        yield from batches(tokenizer, documents, end - begin, begin)
        begin = end


def batches(
    tokenizer: Tokenizer, documents: Iterator[Document], steps: int, begin: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows of a document each, and now and then a whole context; `begin`: steps that were before."""
    for step in range(begin + 1, begin + steps + 1):
        if step % CONTEXT_EVERY == 0:
            yield fill_rows(tokenizer, documents, *CONTEXT_ROWS)
        else:
            yield document_rows(tokenizer, documents, *ROWS)


def document_rows(tokenizer: Tokenizer, documents: Iterator[Document], rows: int, tokens: int) -> tuple[Tensor, Tensor]:
    """A document per row, padded; one that is too long loses its end."""
    ids = torch.full((rows, tokens), PAD_ID)
    weights = torch.zeros(rows, tokens)
    for row in range(rows):
        document_ids, document_weights = encode_document(tokenizer, next(documents))
        length = min(tokens, len(document_ids))
        ids[row, :length] = torch.tensor(document_ids[:length])
        weights[row, :length] = torch.tensor(document_weights[:length])
    return ids, weights


def fill_rows(tokenizer: Tokenizer, documents: Iterator[Document], rows: int, tokens: int) -> tuple[Tensor, Tensor]:
    """Rows of documents one after the other, the last one cut off."""
    all_ids, all_weights = [], []
    for _ in range(rows):
        ids: list[int] = []
        weights: list[float] = []
        while len(ids) < tokens:
            document_ids, document_weights = encode_document(tokenizer, next(documents))
            ids += document_ids
            weights += document_weights
        all_ids.append(ids[:tokens])
        all_weights.append(weights[:tokens])
    return torch.tensor(all_ids), torch.tensor(all_weights)


def encode_document(tokenizer: Tokenizer, document: Document) -> tuple[list[int], list[float]]:
    """Token ids with <bos> first, and the weight of each as a target; <bos> is never one."""
    ids, weights = [BOS_ID], [0.0]
    for piece in document:
        piece_ids = tokenizer.encode(piece.text, add_special_tokens=False).ids
        ids += piece_ids
        weights += [piece.weight] * len(piece_ids)
    return ids, weights


def save_checkpoint(model: GemmaForCausalLM, tokenizer: Tokenizer, output_dir: Path) -> None:
    """Write the checkpoint's files to a directory next to `output_dir`, then move them there; others stay."""
    temporary = output_dir.with_name(f".{output_dir.name}.{os.getpid()}")
    temporary.mkdir(parents=True)
    try:
        (temporary / "config.json").write_text(json.dumps(CONFIG.to_json(), indent=2) + "\n", encoding="utf-8")
        for name, text in tokenizer_files(tokenizer, CONFIG.max_position_embeddings).items():
            (temporary / name).write_text(text, encoding="utf-8")
        state = {n: t.detach().to(torch.bfloat16).contiguous() for n, t in model.state_dict().items()}
        del state["lm_head.weight"]  # tied: the embedding
        save_file(state, temporary / "model.safetensors", metadata={"format": "pt"})
        output_dir.mkdir(exist_ok=True)
        for path in sorted(temporary.iterdir()):
            os.replace(path, output_dir / path.name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


if __name__ == "__main__":
    main()
