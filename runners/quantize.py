"""Write a quantized checkpoint: python runners/quantize.py model.path=DIR output_dir=NEW quant=w8a8."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from graph_gemma.runners.command_line.entry import main

if TYPE_CHECKING:
    from graph_gemma.runners.settings.declared.quantize import QuantizeSettings


def quantize(settings: QuantizeSettings) -> None:
    """Calibrate where the scheme asks for it, write the checkpoint, and show what was lost in each linear."""
    # Importing torch takes seconds, which --help and a mistyped setting need not wait for.
    from tqdm import tqdm

    from graph_gemma.graph_model.checkpoint.writer import check_target
    from graph_gemma.graph_model.config_file import read_config
    from graph_gemma.graph_model.errors import UserError
    from graph_gemma.graph_model.families import family_of
    from graph_gemma.graph_model.quantization.linears import SCHEMES, Quantization, select_linears
    from graph_gemma.graph_model.quantization.schemes import find_scheme
    from graph_gemma.graph_model.quantizer import QuantizerOptions, quantize_checkpoint
    from graph_gemma.graph_model.quantizer.checkpoint import REPORT_NAME
    from graph_gemma.graph_model.quantizer.report import COLUMNS, table_rows
    from graph_gemma.runners.io.calibration import calibration_sequences
    from graph_gemma.runners.io.table import print_table
    from graph_gemma.runners.settings.model_settings import model_directory

    target, overwrite = Path(settings.output_dir).expanduser(), settings.overwrite
    quant = settings.quant
    # One of the names that the declaration lists.
    scheme, method, dialect = cast(Any, (quant.scheme, quant.range, settings.format))
    if quant.kv8:
        way_out = "Leave it out here" if scheme in SCHEMES else f"Choose quant={', quant='.join(SCHEMES)} here"
        raise UserError(
            "quant.kv8 is true; keys and values are quantized when the model runs, a checkpoint holds none. "
            f"{way_out}, and give quant.kv8=true (or quant=kv8) to graph-gemma infer."
        )
    if scheme is None:
        raise UserError(f"quant.scheme is null; choose quant={', quant='.join(SCHEMES)}.")
    if not find_scheme(scheme).calibrated and (quant.anti_outlier != "none" or quant.range != "minmax"):
        raise UserError(
            f"quant.anti_outlier and quant.range are about scales from calibration, of which quant={scheme} "
            "has none. Leave them out."
        )
    source = model_directory(settings.model)
    if source is None:
        raise UserError("model.path is not set. Give the directory of the floating-point checkpoint: model.path=DIR.")
    inputs = {"model.path": source}
    if settings.calibration.file is not None:
        inputs["calibration.file"] = Path(settings.calibration.file).expanduser()
    check_target(target, overwrite=overwrite, setting="output_dir", inputs=inputs)
    config = read_config(source)
    options = QuantizerOptions(
        Quantization(scheme, select_linears(config, list(quant.keep_float)), stored=True),
        smooth=quant.anti_outlier == "smooth",
        method=method,
        dialect=dialect,
    )
    sequences = calibration_sequences(settings.calibration, source, config) if find_scheme(scheme).calibrated else []
    with tqdm(total=len(family_of(config).layers), unit="layer", dynamic_ncols=True) as bar:
        report = quantize_checkpoint(
            source, target, options, sequences, overwrite=overwrite, progress=lambda stage: bar.update()
        )
    print_table(f"{scheme}: inputs and outputs of the quantized linears", COLUMNS, table_rows(report.linears))
    for sentence in report.float16.sentences() if report.float16 else ():
        print(sentence)
    size, before = (sum(f.stat().st_size for f in folder.glob("*.safetensors")) for folder in (target, source))
    print(f"{target}: {size / 1e6:.1f} MB of weights ({before / 1e6:.1f} MB before); plot: {target / REPORT_NAME}")


if __name__ == "__main__":
    main(quantize, "quantize")
