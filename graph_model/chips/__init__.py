"""The Ascend chips that are known: what each one runs, its limits and its rates."""
