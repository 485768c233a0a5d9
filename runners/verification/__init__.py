"""runners/verify.py: what it runs, and the report that it writes."""
