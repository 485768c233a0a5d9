"""Show whether float16 holds a checkpoint's activations: python runners/activations.py model.path=DIR."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graph_gemma.runners.command_line.entry import main

if TYPE_CHECKING:
    from graph_gemma.runners.settings.declared.activations import ActivationsSettings


def activations(settings: ActivationsSettings) -> None:
    """Print the largest values of each layer over calibration texts, and what float16 makes of them."""
    # Importing torch takes seconds, which --help and a mistyped setting need not wait for.
    from tqdm import tqdm

    from graph_gemma.graph_model.errors import UserError
    from graph_gemma.graph_model.families import family_of
    from graph_gemma.graph_model.quantizer import Float16Report, largest_values
    from graph_gemma.graph_model.quantizer.report import html_page
    from graph_gemma.graph_model.quantizer.source import read_float_config
    from graph_gemma.graph_model.whole_files import write_file
    from graph_gemma.runners.io.calibration import calibration_sequences
    from graph_gemma.runners.io.files import output_file
    from graph_gemma.runners.io.table import print_table
    from graph_gemma.runners.settings.model_settings import model_directory

    source = model_directory(settings.model)
    if source is None:
        raise UserError("model.path is not set. Give the directory of a floating-point checkpoint: model.path=DIR.")
    page = output_file(settings, "page", replaced=True)
    config = read_float_config(source)
    sequences = calibration_sequences(settings.calibration, source, config)
    family = family_of(config)
    with tqdm(total=len(family.layers), unit="layer", dynamic_ncols=True) as bar:
        found = largest_values(source, sequences, lambda: bar.update())
    report = Float16Report.of(family, found, settings.exponent)
    texts = f"{len(sequences)} texts of {sum(map(len, sequences)):,} tokens"
    print_table(f"Largest values by layer, {texts}", report.columns, report.rows())
    for sentence in report.sentences():
        print(sentence)
    if page is not None:
        write_file(page, html_page(f"{source.name}: largest values on {texts}", report.html_section()))
        print(f"{page} ({page.stat().st_size / 1e3:.0f} kB)")


if __name__ == "__main__":
    main(activations, "activations")
