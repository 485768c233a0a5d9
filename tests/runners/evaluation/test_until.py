"""Answers end where those of the harness's own model end, at stop texts that are special tokens, too."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval")
pytest.importorskip("accelerate")

from lm_eval.api.instance import Instance

from graph_gemma.runners import demo
from graph_gemma.runners.backends.transformers_import import import_transformers
from graph_gemma.runners.evaluation.lm import GraphGemmaLM

END = "<end_of_turn>"
CHAT = "<bos><start_of_turn>user\nTell me a story about Sam.<end_of_turn>\n<start_of_turn>model\n"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Any]]:
    """Ours and the harness's, of a demo whose config.json names <eos> alone as an end, as some chat models' do."""
    folder = tmp_path_factory.mktemp("until")
    shutil.copytree(demo.CHECKPOINT_DIR, folder / "model")
    config = folder / "model" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "eos_token_id": 1}))
    (folder / "model" / "generation_config.json").unlink(missing_ok=True)
    settings = {"model.path": folder / "model", "backend": "eager", "dtype": "float32", "cache_dir": folder / "cache"}
    ours = GraphGemmaLM(**settings)
    yield ours, theirs(folder / "model")
    ours.llm.close()


def theirs(folder: Path) -> Any:
    transformers = import_transformers()
    from lm_eval.models.huggingface import HFLM

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()
    return HFLM(pretrained=model, tokenizer=transformers.AutoTokenizer.from_pretrained(folder), device="cpu")


def answer(model: Any, context: str, until: list[str], tokens: int) -> str:
    options = {"until": until, "max_gen_toks": tokens, "do_sample": False}
    request = Instance("generate_until", {}, (context, options), 0, metadata=("t", 0, 1))
    (text,) = model.generate_until([request], disable_tqdm=True)
    return str(text)


@pytest.mark.parametrize(
    "until",
    [
        pytest.param([END], id="special"),
        pytest.param(["never", END], id="second"),
        pytest.param([END, "."], id="with text"),
        pytest.param([" Sam", END], id="text first"),
        pytest.param(["<start_of_turn>", END], id="two special"),
        pytest.param(["dog"], id="text"),
        pytest.param([f".{END}"], id="text and special in one"),
        pytest.param([f"{END}\n", "dog. "], id="special and text in one"),
        pytest.param(["and the dog", "the"], id="one within another"),
    ],
)
def test_a_chat_answer_ends_where_the_harness_ends_it(models: tuple[Any, Any], until: list[str]) -> None:
    ours, harness = models
    expected = answer(harness, CHAT, until, 120)
    assert answer(ours, CHAT, until, 120) == expected
    assert 0 < len(expected) < len(answer(harness, CHAT, [], 120)), "the stop text was reached"


def test_without_stop_texts_answers_are_the_harness_own(models: tuple[Any, Any]) -> None:
    """Beyond <end_of_turn>, which the config does not name."""
    ours, harness = models
    assert answer(ours, CHAT, [], 120) == answer(harness, CHAT, [], 120)
