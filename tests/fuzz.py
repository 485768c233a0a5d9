"""Damage files that others write, and see that reading them ends in a UserError or a result: python tests/fuzz.py.

Each target runs in a process of its own, which may use 1 GB more than at its start, for its share of --seconds.
Prints a table for docs/reliability.md. Exits with 1 where there was a finding: another error, an input that took more
than five seconds, more memory, or a process that ended; hypothesis prints the smallest input that shows it.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
import traceback
from pathlib import Path

# torch_npu without CANN would fail when torch loads it.
os.environ.setdefault("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from support.fuzz_targets import TARGETS, attempt

MEMORY = 1 << 30
_ROUND = 100  # inputs between two looks at the clock
_GRACE = 120  # seconds of the processor, for imports and for making an example smaller
_PATIENCE = 10  # how many times longer it may take on a machine that does other work


def run_target(name: str, seconds: float, first_seed: int) -> dict[str, object]:
    """Inputs, how many were read, and findings of one target, in this process."""
    counts = {True: 0, False: 0}
    findings: list[str] = []
    target = TARGETS[name]

    def once(data: st.DataObject) -> None:
        counts[attempt(target, data)] += 1

    # What is cached, imported and allocated once is not what an input takes.
    settings(max_examples=5, database=None, deadline=None, suppress_health_check=list(HealthCheck))(
        seed(first_seed)(given(data=st.data())(once))
    )()
    used = _data_bytes()
    resource.setrlimit(resource.RLIMIT_DATA, (used + MEMORY, resource.getrlimit(resource.RLIMIT_DATA)[1]))
    # Ends a reader that never comes back to Python, which no signal handler of Python could.
    processor = int(time.process_time() + seconds + _GRACE)
    resource.setrlimit(resource.RLIMIT_CPU, (processor, resource.getrlimit(resource.RLIMIT_CPU)[1]))
    start = time.perf_counter()
    number = first_seed
    while time.perf_counter() - start < seconds and not findings:
        number += 1
        search = settings(
            max_examples=_ROUND,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=(Phase.generate, Phase.shrink),
        )
        try:
            search(seed(number)(given(data=st.data())(once)))()
        except BaseException:  # a panic of Rust is no Exception
            findings.append(traceback.format_exc())
    return {
        "read": counts[True],
        "refused": counts[False],
        "seconds": time.perf_counter() - start,
        "findings": findings,
    }


def _data_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmData:")[1].split()[0]) << 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0, help="of all targets together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=TARGETS, help="one target")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    names = [arguments.only] if arguments.only else list(TARGETS)
    share = arguments.seconds / len(names)
    longest = _PATIENCE * (share + _GRACE)
    if arguments.inside:
        print(json.dumps(run_target(names[0], share, arguments.seed)))
        return
    failed = False
    print("| files | inputs | read | refused | seconds | findings |\n|---|---:|---:|---:|---:|---:|")
    for name in names:
        command = [sys.executable, __file__, "--inside", "--only", name, "--seed", str(arguments.seed)]
        try:
            child = subprocess.run([*command, "--seconds", str(share)], capture_output=True, text=True, timeout=longest)
            result = json.loads(child.stdout.splitlines()[-1]) if child.returncode == 0 else None
            problem = f"status {child.returncode} {child.stderr[-4000:]}"
        except subprocess.TimeoutExpired:
            result, problem = None, f"no end within {longest:g} s"
        if result is None:
            result = {"read": 0, "refused": 0, "seconds": share, "findings": [f"the process ended: {problem}"]}
        inputs = result["read"] + result["refused"]
        print(
            f"| {name} | {inputs:,} | {result['read']:,} | {result['refused']:,} | {result['seconds']:.0f} | "
            f"{len(result['findings'])} |",
            flush=True,
        )
        for finding in result["findings"]:
            failed = True
            print(finding, file=sys.stderr)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
