"""How the demo model was trained and measured. Not installed with the package."""
