"""Check the Ascend graph on a device, or on the stand-in: python runners/verify.py [SETTING=VALUE ...]."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from graph_gemma.runners.command_line.entry import main

if TYPE_CHECKING:
    from graph_gemma.runners.settings.declared.verify import VerifySettings


def verify(settings: VerifySettings) -> None:
    """Print and write the report; exits with status 1 if anything differs."""
    # Importing torch takes seconds, which --help and a mistyped setting need not wait for.
    from pathlib import Path

    from graph_gemma.runners.command_line.checkout import require_checkout

    require_checkout("graph_gemma.runners.verification", "verify: what checks the ops")

    from graph_gemma.runners.io.files import check_not_there
    from graph_gemma.runners.settings.model_settings import require_torchair, resolve_settings
    from graph_gemma.runners.verification.report import make_directory, write_report
    from graph_gemma.runners.verification.run import run_verification

    directory = Path(settings.report_dir).expanduser()
    model_settings = resolve_settings(settings)
    require_torchair(model_settings)
    make_directory(directory)
    for name in ("report.json", "report.txt"):
        check_not_there(settings, "report_dir", directory / name)
    report = run_verification(model_settings)
    print(write_report(report, directory), end="")
    print(f"report: {directory / 'report.json'}, {directory / 'report.txt'}")
    if not report.passed:
        sys.exit(1)


if __name__ == "__main__":
    main(verify, "verify")
