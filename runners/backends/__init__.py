"""Backends: what turns a rewritten graph into something that runs."""
