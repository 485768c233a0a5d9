"""The commands (infer.py, benchmark.py, ...), and packages that run models: backends, engine, settings."""
