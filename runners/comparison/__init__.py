"""Compare the next-token distributions of two configurations on the same texts."""
