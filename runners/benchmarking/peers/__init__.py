"""What a user would run instead, on the same weights: a module for each; not installed with the package."""
