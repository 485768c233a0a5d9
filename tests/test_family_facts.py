"""What differs between families is asked of the family: no other file counts layers or names a model's tensors."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FACTS = re.compile(
    r"num_hidden_layers|input_layernorm|post_attention_layernorm|\b[qkvo]_proj|qkv_proj|gate_proj|up_proj|down_proj"
    r"|self_attn|embed_tokens|lm_head|model\.layers|model\.norm\b"
)
# The definition and its config; names of others' tools and engines; the training of the demo, which is a Gemma 1; names
# that users type in a setting, with its default.
EXEMPT = (
    "graph_model/config.py",
    "graph_model/config_fields.py",
    "graph_model/config_file.py",
    "graph_model/families/",
    "graph_model/checkpoint/anti_outlier.py",
    "graph_model/gguf/",
    "runners/benchmarking/peers/",
    "runners/demo/training/",
    "runners/settings/declared/model.py",
)
SOURCES = [
    path
    for package in ("graph_model", "passes", "runners")
    for path in sorted((ROOT / package).rglob("*.py"))
    if not str(path.relative_to(ROOT)).startswith(EXEMPT)
]


def facts(source: str) -> list[str]:
    """Lines that state a fact of a family; comments and docstrings may give examples."""
    examples: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            examples.update(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return [
        f"{token.start[0]}: {token.string}"
        for token in tokens
        if token.type != tokenize.COMMENT and token.start[0] not in examples and FACTS.search(token.string)
    ]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_states_no_fact_of_a_family(path: Path) -> None:
    assert not facts(path.read_text(encoding="utf-8"))


def test_a_fact_would_be_found() -> None:
    source = '"""Of self_attn."""\nx = config.num_hidden_layers  # lm_head\ny = f"{path}.q_proj"\n'
    assert [line.partition(":")[0] for line in facts(source)] == ["2", "3"]
    assert facts((ROOT / "graph_model" / "families" / "gemma1.py").read_text(encoding="utf-8"))
