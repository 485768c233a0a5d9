"""GGUF files of llama.cpp that hold a Gemma 1, 2 or 3: convert one to a Hugging Face checkpoint."""

from graph_gemma.graph_model.gguf.convert import convert_gguf
