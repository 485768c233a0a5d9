"""Command line of lm-evaluation-harness with the model `graph_gemma` and the demo's tasks.

python runners/lm_eval_cli.py run --model graph_gemma --model_args dtype=float32 --tasks demo_comprehension

Installed, it is the command graph-gemma-lm-eval. The harness's own command lm-eval does not know the model.
"""

from __future__ import annotations

import sys

from graph_gemma.graph_model.errors import UserError


def main() -> None:
    """All arguments are the harness's; --model_args takes the settings of runners/infer.py.

    An --include_path of the user's takes the place of ours, which holds the demo's tasks.
    """
    from graph_gemma.runners.evaluation.harness import TASKS_DIR, check_installed

    try:
        check_installed()
        from graph_gemma.runners.backends.transformers_import import import_transformers

        import_transformers()  # for --model hf
        from lm_eval.__main__ import cli_evaluate

        import graph_gemma.runners.evaluation.lm  # noqa: F401 (registers the model)

        given = {argument.partition("=")[0] for argument in sys.argv[1:]}
        if given & {"--tasks", "-t"} and "--include_path" not in given:
            sys.argv += ["--include_path", str(TASKS_DIR)]
        cli_evaluate()
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    # As in command_line/entry.py: this folder's files would hide packages of their names.
    from pathlib import Path

    here = Path(__file__).resolve().parent
    sys.path[:] = [entry for entry in sys.path if not entry or Path(entry).resolve() != here]
    main()
