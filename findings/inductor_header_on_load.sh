#!/usr/bin/env bash
# torch 2.13.0, Inductor's C++ kernels. A process that finds all of its kernels compiled still wants the precompiled header
# that only compiling uses: where it is gone (it lies in the system's folder for temporary files, whatever
# TORCHINDUCTOR_CACHE_DIR says), a warm start preprocesses the header and builds it again, over 50 MB and several seconds,
# although no kernel is compiled.
# Seen: first: 0 hits, header of over 50 MB
#       warm: 1 hits, kernels compiled: 0, header built again: True
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/env"
"$dir/env/bin/pip" install -q torch==2.13.0
cat > "$dir/see.py" <<'PY'
import os
from pathlib import Path
import torch
from torch._dynamo.utils import counters

cache = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
before = set(cache.rglob("*.so"))
torch.compile(lambda x: torch.nn.functional.gelu(x) * 2)(torch.randn(64, 64))
headers = [path.stat().st_size for path in Path(os.environ["TMPDIR"]).rglob("*.gch")]
print(counters["inductor"]["fxgraph_cache_hit"], max(headers, default=0), len(set(cache.rglob("*.so")) - before))
PY
export TORCHINDUCTOR_CACHE_DIR="$dir/cache" TMPDIR="$dir/tmp"
mkdir "$TMPDIR"
see() { "$dir/env/bin/python" "$dir/see.py" 2>/dev/null; }
read -r hits size _ <<<"$(see)"
echo "first: $hits hits, header of $( ((size > 50000000)) && echo "over 50 MB" || echo "$size bytes")" | tee "$dir/out"
rm -rf "$TMPDIR"; mkdir "$TMPDIR"
read -r hits size made <<<"$(see)"
echo "warm: $hits hits, kernels compiled: $made, header built again: $( ((size > 50000000)) && echo True || echo False)" | tee -a "$dir/out"
grep -qF "first: 0 hits, header of over 50 MB" "$dir/out"
grep -qF "warm: 1 hits, kernels compiled: 0, header built again: True" "$dir/out"
