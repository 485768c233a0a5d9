#!/usr/bin/env bash
# lm-eval 0.4.13, perplexity tasks (loglikelihood_rolling) with a tokenizer that adds bos, as Gemma's does: the first window
# has bos as its context and a second bos as the first token that is *scored*. The surprise of bos after bos is in every
# perplexity. A multiple-choice item with an empty context ("loglikelihood") does not have it.
# Seen: rolling: context [2] scored [2, 4, 5, 6, 7]
#       empty context: [2] [4, 5]
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/env"
"$dir/env/bin/pip" install -q torch==2.13.0 "lm-eval[hf]==0.4.13" transformers==5.24.0
cat > "$dir/see.py" <<'PY'
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import GemmaConfig, GemmaForCausalLM, PreTrainedTokenizerFast

words = ["<pad>", "<eos>", "<bos>", "<unk>", "one", "day", "Sam", "ran"]
raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
raw.pre_tokenizer = pre_tokenizers.Whitespace()
raw.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=raw, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>", unk_token="<unk>"
)
shape = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1)
model = GemmaForCausalLM(GemmaConfig(vocab_size=8, head_dim=16, **shape))
lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1, max_length=16, device="cpu")
seen, score = [], lm._loglikelihood_tokens
lm._loglikelihood_tokens = lambda requests, *a, **k: (seen.extend(requests), score(requests, *a, **k))[1]
lm.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, ("one day Sam ran",), 0)])
lm.loglikelihood([Instance("loglikelihood", {}, ("", "one day"), 0)])
print("rolling: context", seen[0][1], "scored", seen[0][2])
print("empty context:", seen[1][1], seen[1][2])
PY
HF_HUB_OFFLINE=1 "$dir/env/bin/python" "$dir/see.py" 2>/dev/null | tee "$dir/out"
grep -qF "rolling: context [2] scored [2, 4, 5, 6, 7]" "$dir/out"
grep -qF "empty context: [2] [4, 5]" "$dir/out"
