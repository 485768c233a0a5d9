"""C++ kernels of our own, compiled once per machine."""

from graph_gemma.graph_model.native.build import NativeBuildError, load_kernels
