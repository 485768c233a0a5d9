"""The shipped checkpoint answers held-out questions, tells stories of the world's words, and is small."""

from __future__ import annotations

import re
from itertools import islice

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from tokenizers import Tokenizer

from graph_gemma.graph_model.config_file import read_config
from graph_gemma.graph_model.families import family_of
from graph_gemma.runners.demo import CHECKPOINT_DIR
from graph_gemma.runners.demo.facts import KINDS
from graph_gemma.runners.demo.training.documents import chat_documents
from graph_gemma.runners.demo.training.evaluate import (
    generate_greedily,
    load_model,
    measure_accuracy,
    measure_coherence,
    measure_perplexity,
)
from graph_gemma.runners.demo.training.tokenizer import END_OF_TURN_ID, EOS_ID
from graph_gemma.runners.demo.world import demo_prompts, held_out_items, held_out_stories, training_stories


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return load_model(CHECKPOINT_DIR)


def test_files_are_those_of_a_hugging_face_directory_and_small() -> None:
    sizes = {path.name: path.stat().st_size for path in CHECKPOINT_DIR.iterdir()}
    assert set(sizes) == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert sum(sizes.values()) < 12e6


def test_shape_lets_every_split_and_alignment_be_tried() -> None:
    config = read_config(CHECKPOINT_DIR)
    assert (config.num_attention_heads, config.num_key_value_heads) == (8, 1)
    assert config.head_dim % 32 == 0
    assert config.num_attention_heads * config.head_dim != config.hidden_size
    assert config.vocab_size % 256 == config.intermediate_size % 256 == 0
    assert config.tie_word_embeddings
    assert config.dtype == "bfloat16"


def test_weights_are_bfloat16_and_the_tied_head_is_stored_once() -> None:
    expected = dict(family_of(read_config(CHECKPOINT_DIR)).model().named_parameters())  # a tied head is listed once
    with safe_open(CHECKPOINT_DIR / "model.safetensors", framework="pt") as file:
        assert set(file.keys()) == set(expected)
        for name in file.keys():  # noqa: SIM118 - not a dict
            tensor = file.get_tensor(name)
            assert tensor.dtype == torch.bfloat16
            assert tensor.shape == expected[name].shape


def test_accuracy_of_a_model_that_knows_nothing_is_chance(tokenizer: Tokenizer) -> None:
    torch.manual_seed(0)
    blank = family_of(read_config(CHECKPOINT_DIR)).model().eval()
    assert 0.3 < measure_accuracy(blank, tokenizer, held_out_items(100)).total < 0.7


def test_held_out_items_are_answered(model: torch.nn.Module, tokenizer: Tokenizer) -> None:
    accuracy = measure_accuracy(model, tokenizer, held_out_items(600))
    assert accuracy.total > 0.97
    assert min(accuracy.by_kind.values()) > 0.95


def test_stories_are_expected_far_into_the_context(model: torch.nn.Module, tokenizer: Tokenizer) -> None:
    ids = [i for story in held_out_stories(12) for i in (*tokenizer.encode(story).ids, EOS_ID)][:1000]
    assert len(ids) == 1000
    with torch.inference_mode():
        logits = model(torch.tensor([ids]), torch.arange(1000)[None])[0, 700:-1]
    assert F.cross_entropy(logits, torch.tensor(ids[701:])).exp() < 2.5


def test_items_after_hundreds_of_tokens_beat_chance(model: torch.nn.Module, tokenizer: Tokenizer) -> None:
    stories = [i for story in held_out_stories(16) for i in (*tokenizer.encode(story).ids, EOS_ID)][:600]
    yes, no = (tokenizer.encode(text, add_special_tokens=False).ids[0] for text in (" yes", " no"))
    right = 0
    for item in held_out_items(60):
        ids = stories + tokenizer.encode(item.prompt).ids
        with torch.inference_mode():
            logits = model(torch.tensor([ids]), torch.arange(len(ids))[None])[0, -1]
        right += bool(logits[yes] > logits[no]) == item.answer
    assert right > 0.7 * 60  # 60 tosses of a coin come to more than 42 once in a thousand times


def test_open_questions_are_answered(model: torch.nn.Module, tokenizer: Tokenizer) -> None:
    items = held_out_items(60)
    right = 0
    for item in items:
        question = KINDS[item.kind].open_question.format(item.about.person)
        prompt = f"{item.title} -- {item.passage}\nQuestion: {question}?\nAnswer:"
        generated = generate_greedily(model, tokenizer.encode(prompt).ids, 1)
        right += tokenizer.decode(generated) == f" {item.about.word}"
    assert right > 0.9 * len(items)


def test_held_out_stories_are_expected(model: torch.nn.Module, tokenizer: Tokenizer) -> None:
    assert measure_perplexity(model, tokenizer, held_out_stories(30)) < 3


def test_the_question_among_the_demo_prompts_is_answered(model: torch.nn.Module, tokenizer: Tokenizer) -> None:
    generated = generate_greedily(model, tokenizer.encode(demo_prompts()[-1]).ids, 5)
    assert generated[-1] == EOS_ID
    assert tokenizer.decode(generated) == " yes"


@pytest.mark.parametrize("prompt", demo_prompts()[:-1])
def test_stories_end_and_are_made_of_the_worlds_words(
    model: torch.nn.Module, tokenizer: Tokenizer, prompt: str
) -> None:
    generated = generate_greedily(model, tokenizer.encode(prompt).ids, 160)
    assert generated[-1] == EOS_ID
    text = tokenizer.decode(generated)
    words = {word for story in islice(training_stories(0), 2000) for word in re.findall(r"\w+", story.text)}
    assert set(re.findall(r"\w+", text)) <= words
    assert text.endswith(".")
    assert len(text.split()) > 20


def test_chat_turns_are_answered_and_end(model: torch.nn.Module, tokenizer: Tokenizer) -> None:
    for document in islice(chat_documents("unseen"), 2):
        generated = generate_greedily(model, tokenizer.encode(document[0].text).ids, 160)
        assert generated[-1] == END_OF_TURN_ID
        assert tokenizer.decode(generated).endswith(".")
        if "Question:" in document[0].text:
            assert tokenizer.decode(generated) == document[1].text


def test_stories_end_with_the_words_they_began_with(model: torch.nn.Module, tokenizer: Tokenizer) -> None:
    assert measure_coherence(model, tokenizer, held_out_stories(40)) > 0.4
