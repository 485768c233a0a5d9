"""The settings of runners/activations.py."""

from __future__ import annotations

from graph_gemma.graph_model.residual_scale import DEFAULT_EXPONENT, MOST_EXPONENT
from graph_gemma.runners.settings.declared.model import Model
from graph_gemma.runners.settings.declared.quantize import Calibration
from graph_gemma.runners.settings.schema import Settings, group, setting


class ActivationsSettings(Settings):
    """Show how large a model's values become, layer by layer, and whether float16 holds them: of the residual stream,
    which float16 steps of Gemma 2 and 3 divide by a power of two, of what is added to it, and of everything else in the
    layers. Computed in float32 on calibration texts. Without arguments: the demo model."""

    model: Model = group(Model, option="demo")
    exponent: int = setting(
        DEFAULT_EXPONENT,
        "What passes.scale_residual.exponent of graph-gemma infer will be: the stream is divided by 2 ** exponent.",
        least=0,
        most=MOST_EXPONENT,
    )
    calibration: Calibration = group(Calibration, "What the values are taken from.")
    page: str | None = setting(None, "Write table and plot to this HTML file, which needs no network.")
    overwrite: bool = setting(False, "Replace a page that is there already.")
