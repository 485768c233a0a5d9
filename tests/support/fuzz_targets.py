"""Fuzz targets: readers of foreign files, each with a way to damage such files, for tests/fuzz.py and tests.

A target takes hypothesis's `data` and a directory, writes files there, and reads them. Nothing but a UserError may come
out of the reading, within `SECONDS` of the processor's time.
"""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from hypothesis import strategies as st
from safetensors.torch import load_file

from graph_gemma.graph_model.ascend.ge_proto import messages
from graph_gemma.graph_model.ascend.graph_file import from_pbtxt
from graph_gemma.graph_model.checkpoint import open_checkpoint
from graph_gemma.graph_model.checkpoint.convert import convert_checkpoint
from graph_gemma.graph_model.config import GemmaConfig
from graph_gemma.graph_model.config_file import read_config
from graph_gemma.graph_model.errors import UserError
from graph_gemma.graph_model.gguf import convert_gguf
from graph_gemma.graph_model.quantization.linears import select_linears
from graph_gemma.runners.inspection.findings import find
from graph_gemma.runners.inspection.page import as_page
from graph_gemma.runners.inspection.plots import plots
from graph_gemma.runners.inspection.source import damage_named, read_dumps
from graph_gemma.runners.inspection.text import as_text as shown_as_text
from graph_gemma.runners.io.calibration import read_texts
from graph_gemma.runners.io.prompts import read_prompts
from graph_gemma.runners.io.tokenizer import chat_prompt, load_tokenizer
from support.checkpoints import write_random_checkpoint
from support.configs import TINY_CONFIGS
from support.damage import TEXT, damaged, damaged_bytes, damaged_lines, write_json
from support.modelslim import quantized_tensors, write_checkpoint
from support.tokenizers import CHAT_TEMPLATE, make_tokenizer

SECONDS = 5.0
_GRAPH = Path(__file__).parents[1] / "data" / "dump" / "decode-b3-w2" / "lowered.pbtxt"
CONFIG: GemmaConfig = TINY_CONFIGS["one_kv_head"]

Target = Callable[[Any, Path], object]


@cache
def _model() -> Path:
    """A whole small checkpoint in one file, with its tokenizer. Shared, and read only."""
    directory = Path(_folder().name) / "model"
    write_random_checkpoint(directory, CONFIG)
    make_tokenizer(directory)
    write_json(directory / "generation_config.json", {"bos_token_id": 2, "eos_token_id": [1, 107], "top_k": 64})
    return directory


@cache
def _quantized() -> Path:
    directory = Path(_folder().name) / "quantized"
    with open_checkpoint(_model(), CONFIG) as checkpoint:
        weights = {name: checkpoint.read(name) for name in checkpoint.names}
    made = quantized_tensors(
        weights, select_linears(CONFIG, ["down_proj", "lm_head"]), "w8a8", next(iter(weights.values())).dtype
    )
    write_checkpoint(directory, CONFIG.to_json(), made, "w8a8")
    return directory


@cache
def _folder() -> TemporaryDirectory[str]:
    return TemporaryDirectory(prefix="fuzz-")


def _read(directory: Path) -> None:
    with open_checkpoint(directory, read_config(directory)) as checkpoint:
        for name in checkpoint.names:
            checkpoint.read(name).sum()


def _json_file(name: str, origin: Callable[[], Path], read: Callable[[Path], object]) -> Target:
    """The JSON file `name` of a directory is damaged as a value or as bytes, and the directory read."""

    def target(data: Any, directory: Path) -> None:
        shutil.copytree(origin(), directory, dirs_exist_ok=True)
        path = directory / name
        content = path.read_bytes()
        if data.draw(st.booleans()):
            write_json(path, damaged(data, json.loads(content)))
        else:
            path.write_bytes(damaged_bytes(data, content))
        read(directory)

    return target


def weights_header(data: Any, directory: Path) -> None:
    shutil.copytree(_model(), directory, dirs_exist_ok=True)
    path = directory / "model.safetensors"
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    if data.draw(st.booleans()):
        header = json.dumps(damaged(data, json.loads(content[8 : 8 + length]))).encode("utf-8", "surrogatepass")
        size = data.draw(st.sampled_from([len(header), len(header) + 1, 0, 2**63]))
        path.write_bytes(size.to_bytes(8, "little") + header + content[8 + length :])
    else:
        path.write_bytes(damaged_bytes(data, content))
    _read(directory)


def index(data: Any, directory: Path) -> None:
    shutil.copytree(_model(), directory, dirs_exist_ok=True)
    shard = directory / "model-00001-of-00001.safetensors"
    (directory / "model.safetensors").rename(shard)
    with open_checkpoint(_model(), CONFIG) as checkpoint:
        weight_map = dict.fromkeys(checkpoint.names, shard.name)
    write_json(directory / "model.safetensors.index.json", damaged(data, {"metadata": {}, "weight_map": weight_map}))
    _read(directory)


def adapter(data: Any, directory: Path) -> None:
    (directory / "adapter_model.safetensors").write_bytes(b"")
    raw = {"peft_type": "LORA", "base_model_name_or_path": "google/gemma-2b", "r": 4}
    write_json(directory / "adapter_config.json", damaged(data, raw))
    read_config(directory)


def recipe(data: Any, directory: Path) -> None:
    shutil.copytree(_quantized(), directory, dirs_exist_ok=True)
    text = "spec:\n  process:\n  - type: linear_quant\n    include: ['*']\n"
    (directory / "Gemma_best_practice.yaml").write_bytes(damaged_bytes(data, text.encode()))
    _read(directory)


def _tokenizer(directory: Path) -> None:
    tokenizer = load_tokenizer(directory)
    tokenizer.decode(tokenizer("Hello, world: \u4f60 \x00").input_ids)


_PIECES = st.sampled_from(
    [
        "{{ bos_token }}",
        "{{ messages }}",
        "{% for m in messages %}",
        "{{ m.content }}",
        "{% endfor %}",
        "{{ m.x.y }}",
        "{% if m %}",
        "{% endif %}",
        "{{ raise_exception('no') }}",
        "{{ 1 / 0 }}",
        "{{ ''.__class__.__mro__ }}",
        "{%",
        "{{ range(9**9) }}",
        "{{ 'x' * 9**7 }}",
        "{% set x = [] %}",
        "{{ x.append(x) }}",
        "{{ x }}",
        "{{ m | tojson }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% include 'x' %}",
        "{{ 'a' | e | trim }}",
        "text",
        "\x1b",
    ]
)


def template(data: Any, directory: Path) -> None:
    text = "".join(data.draw(st.lists(_PIECES, max_size=8))) if data.draw(st.booleans()) else CHAT_TEMPLATE
    chat_prompt(_loaded_tokenizer(), [{"role": "user", "content": data.draw(TEXT)}], text + "{{ '' }}")


@cache
def _loaded_tokenizer() -> Any:
    return load_tokenizer(_model())


def prompts_file(data: Any, directory: Path) -> None:
    lines = [{"prompt": "Hi"}, {"messages": [{"role": "user", "content": "Hi"}]}, [{"role": "user", "content": "Hi"}]]
    path = directory / "prompts.jsonl"
    text = "\n".join(json.dumps(damaged(data, line)) for line in lines)
    path.write_bytes(
        damaged_bytes(data, text.encode("utf-8", "surrogatepass")) if data.draw(st.booleans()) else text.encode()
    )
    read_prompts(prompts_file=path, tokenizer=_loaded_tokenizer(), config=CONFIG, max_seq_len=64)


def calibration_file(data: Any, directory: Path) -> None:
    suffix = data.draw(st.sampled_from([".json", ".jsonl"]))
    path = directory / f"texts{suffix}"
    items = damaged(
        data, [{"prompt": "A"}, {"inputs_pretokenized": "B"}, {"passage": "C", "question": "D", "answer": True}]
    )
    items = items if isinstance(items, list) else [items]
    write_json(path, items) if suffix == ".json" else path.write_text("\n".join(map(json.dumps, items)))
    read_texts(path)


@cache
def _gguf() -> bytes:
    from support.gguf_files import CONFIGS as GGUF_CONFIGS
    from support.gguf_files import small, write_gguf

    path = Path(_folder().name) / "model.gguf"
    write_gguf(path, small(GGUF_CONFIGS["gemma3"]))
    return path.read_bytes()


def gguf_file(data: Any, directory: Path) -> None:
    """Damaged are the fields that come first, those of the vocabulary's end, and what is said of the tensors."""
    content = _gguf()
    place = data.draw(st.sampled_from([0, content.index(b"token_embd") - 6000, content.index(b"token_embd") - 8]))
    (directory / "m.gguf").write_bytes(content[:place] + damaged_bytes(data, content[place:]))
    convert_gguf(directory / "m.gguf", directory / "c")
    _tokenizer(directory / "c")


@cache
def _pickled() -> Path:
    """The same checkpoint as pytorch_model.bin."""
    directory = Path(_folder().name) / "pickled"
    shutil.copytree(_model(), directory)
    weights = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    torch.save(weights, directory / "pytorch_model.bin")
    return directory


def pickled_weights(data: Any, directory: Path) -> None:
    """Damaged are the pickle, which comes first, or anything after it."""
    shutil.copytree(_pickled(), directory, dirs_exist_ok=True)
    path = directory / "pytorch_model.bin"
    content = path.read_bytes()
    place = data.draw(st.just(0) | st.integers(0, len(content) - 1))
    path.write_bytes(content[:place] + damaged_bytes(data, content[place:]))
    convert_checkpoint(directory)


@cache
def _serialized_graph() -> bytes:
    model = messages().ModelDef()
    model.graph.add().CopyFrom(from_pbtxt(_GRAPH.read_bytes()))
    return model.SerializeToString()


def lowered_graph(data: Any, directory: Path) -> None:
    """As torchair dumps it, and as the engine takes it."""
    as_text = data.draw(st.booleans())
    path = directory / ("lowered.pbtxt" if as_text else "lowered.pb")
    if as_text:
        content = damaged_lines(data, _GRAPH.read_bytes())
    else:
        place = data.draw(st.integers(0, len(_serialized_graph()) - 1))
        content = _serialized_graph()[:place] + damaged_bytes(data, _serialized_graph()[place:])
    path.write_bytes(content)
    with damage_named(path):
        findings = [find(dump, None) for dump in read_dumps(path, None)]
        for each in findings:
            shown_as_text(each, 10), plots(each)
        as_page(findings)


TARGETS: dict[str, Target] = {
    "config.json": _json_file("config.json", _model, _read),
    "generation_config.json": _json_file("generation_config.json", _model, _read),
    "safetensors header": weights_header,
    "safetensors index": index,
    "ModelSlim description": _json_file("quant_model_description_w8a8.json", _quantized, _read),
    "ModelSlim recipe": recipe,
    "config.json of a quantized checkpoint": _json_file("config.json", _quantized, _read),
    "adapter_config.json": adapter,
    "tokenizer.json": _json_file("tokenizer.json", _model, _tokenizer),
    "tokenizer_config.json": _json_file("tokenizer_config.json", _model, _tokenizer),
    "chat template": template,
    "prompts file": prompts_file,
    "calibration file": calibration_file,
    "pytorch_model.bin": pickled_weights,
    "lowered graph": lowered_graph,
    **({"GGUF file": gguf_file} if find_spec("gguf") else {}),
}


class TooSlowError(AssertionError):
    """An input took more than `SECONDS`."""


def attempt(target: Target, data: Any) -> bool:
    """Let a target read damaged files; whether it took them. Everything but a UserError is raised."""
    (
        _quantized(),
        _loaded_tokenizer(),
        find_spec("gguf") and _gguf(),
    )  # made, and what they need imported, before the clock runs
    with TemporaryDirectory(prefix="fuzz-") as folder, _limited():
        try:
            target(data, Path(folder))
        except UserError:
            return False
    return True


@contextmanager
def _limited() -> Iterator[None]:
    expired = []

    def stop(*unused: object) -> None:
        expired.append(True)
        raise TooSlowError(f"more than {SECONDS:g} s")

    # Of the processor: what else the machine does is no fault of the reader.
    previous = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, previous)
        if expired:  # readers that turn every exception into a UserError have caught it
            raise TooSlowError(f"more than {SECONDS:g} s")
