"""The commands: thin entry points over graph_model and the engine."""
