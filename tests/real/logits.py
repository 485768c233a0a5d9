"""Greedy tokens of the real model and the distributions along them, against transformers, by runners/compare.py."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from graph_gemma.runners.io.tokenizer import load_tokenizer
from tests.real.material import Material, run
from tests.real.prompts import SHORT, long_text
from tests.real.report import Lines

LONG_TOKENS = 3000
NEW_TOKENS = 200
# Settings by name. The interpreter of a chip's graphs takes minutes for what the others do in seconds.
CPU = {
    "eager": ("dtype=float32", "backend=eager"),
    "inductor": ("dtype=float32", "backend=inductor"),
    "ranks": ("dtype=float32", "backend=eager", "world_size=2"),
}
CHIPS = {
    "atlas_800i_a2": ("dtype=float16", "backend=torchair", "soc=atlas_800i_a2"),
    "atlas_300i_duo": ("dtype=float16", "backend=torchair", "soc=atlas_300i_duo"),
}
CHIP_TOKENS = 8
LARGEST_KL = {"float32": 1e-7, "float16": 1e-4}


def check(material: Material, on: list[str]) -> Lines:
    return [one(material, name) for name in on or [*CPU, *CHIPS]]


def one(material: Material, name: str) -> tuple[str, bool | None]:
    chip = name in CHIPS
    settings = CHIPS[name] if chip else CPU[name]
    folder = material.folder / "logits" / name
    folder.mkdir(parents=True, exist_ok=True)
    prompts = [*SHORT] if chip else [*SHORT, long_text(load_tokenizer(material.model), LONG_TOKENS)]
    lines = "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts)
    (folder / "prompts.jsonl").write_text(lines, encoding="utf-8")
    command = [sys.executable, "runners/compare.py", f"model.path={material.model}", "ignore_eos=true"]
    command += [f"max_new_tokens={CHIP_TOKENS if chip else NEW_TOKENS}", f"prompts_file={folder / 'prompts.jsonl'}"]
    command += [f"results_dir={folder}", f"a=[{','.join(settings)}]", "b=[transformers,dtype=float32]"]
    try:
        run(command)
    except subprocess.CalledProcessError as error:
        if chip and error.returncode == 2:  # a message for the user, not a crash
            return f"{name} refuses it: {' '.join(error.stderr.split())[-600:]}", None
        if error.returncode != 1:  # 1: both sides ran, and are further apart than compare.py allows
            raise
    return judged(name, settings[0].removeprefix("dtype="), len(prompts), folder)


def judged(name: str, dtype: str, prompts: int, folder: Path) -> tuple[str, bool]:
    found = json.loads(max(folder.glob("comparison_*.json")).read_text())
    passed = found["token_agreement"] == 1 and found["same_answers"] == prompts and found["kl_max"] <= LARGEST_KL[dtype]
    return (
        f"{name} ({found['a']['backend']}): {found['positions']} tokens after {prompts} prompts, "
        f"{found['token_agreement']:.2%} equal, {found['same_answers']} answers alike, "
        f"largest KL {found['kl_max']:.1e}",
        passed,
    )
