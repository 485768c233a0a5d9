#!/usr/bin/env bash
# msmodelslim 26.1.0, anti-outlier step iter_smooth (in the default recipe of `--quant_type w8a8`) and Gemma. It takes a
# norm for w * n; Gemma's is (1 + w) * n. A smoothed Llama of the same shape computes what it did, a smoothed Gemma
# another model, before anything is quantized. In bfloat16 the step ends with an error (the norm that it puts in gives
# float32), and the recipe, which is written first, stays in the target with no weights beside it.
# Seen: iter_smooth changes Llama's logits by less than 0.1 %, Gemma's by more than 10 %
#       bfloat16: RuntimeError and leaves ['gemma16_best_practice.yaml']
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/env"
"$dir/env/bin/pip" install -q torch==2.13.0 transformers==5.24.0 msmodelslim==26.1.0
cat > "$dir/see.py" <<'PY'
import builtins, json, sys, tempfile
from pathlib import Path

import torch
from msmodelslim.cli.__main__ import main
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GemmaConfig, GemmaForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

builtins.input = lambda *_: "y"
root = Path(tempfile.mkdtemp())
words = ["<pad>", "<eos>", "<bos>", "<unk>", "one", "day", "Sam", "ran", "home", "fast"]
raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
raw.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")
(root / "texts.jsonl").write_text('{"inputs_pretokenized": "one day Sam ran home fast"}\n')
recipe = {"apiversion": "modelslim_v1", "spec": {"process": [{"type": "iter_smooth", "include": ["*"]}],
          "runner": "model_wise", "save": [{"type": "ascendv1_saver"}], "dataset": str(root / "texts.jsonl")}}
(root / "recipe.yaml").write_text(json.dumps(recipe))
shape = dict(vocab_size=10, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
             num_key_value_heads=2, head_dim=32, tie_word_embeddings=False)
ids = torch.tensor([[4, 5, 6, 7, 8, 9]])


def quantize(name, kind, config, dtype=torch.float32):
    torch.manual_seed(0)
    model = kind(config).to(dtype).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=0.2 if parameter.dim() == 1 else 0.0, std=0.1)
    model.save_pretrained(root / name)
    tokenizer.save_pretrained(root / name)
    sys.argv = ["msmodelslim", "quant", "--model_type", name, "--model_path", str(root / name), "--save_path",
                str(root / f"{name}-new"), "--device", "cpu", "--config_path", str(root / "recipe.yaml")]
    main()
    return model


@torch.no_grad()
def change(name, kind, config):
    model = quantize(name, kind, config)
    before = model(ids).logits
    for file in (root / f"{name}-new").glob("*.safetensors"):
        model.load_state_dict(load_file(file), strict=False)
    return ((model(ids).logits - before).norm() / before.norm()).item()


llama = change("llama", LlamaForCausalLM, LlamaConfig(**shape))
gemma = change("gemma", GemmaForCausalLM, GemmaConfig(**shape))
print(f"iter_smooth changes Llama's logits by {'less than 0.1 %' if llama < 1e-3 else llama}, "
      f"Gemma's by {'more than 10 %' if gemma > 0.1 else gemma}")
try:
    quantize("gemma16", GemmaForCausalLM, GemmaConfig(**shape), torch.bfloat16)
except BaseException as error:
    left = sorted(path.name for path in (root / "gemma16-new").iterdir())
    print("bfloat16:", type(error.__cause__ or error).__name__, "and leaves", left)
PY
HF_HUB_OFFLINE=1 HOME="$dir" TMPDIR="$dir" "$dir/env/bin/python" "$dir/see.py" 2>/dev/null | tee "$dir/out"
grep -qF "iter_smooth changes Llama's logits by less than 0.1 %, Gemma's by more than 10 %" "$dir/out"
grep -qF "bfloat16: RuntimeError and leaves ['gemma16_best_practice.yaml']" "$dir/out"
