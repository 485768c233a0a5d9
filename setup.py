"""Build the package graph_gemma: this folder's packages, and its __init__.py above them."""

from setuptools import find_packages, setup

# What users never call; a command that needs it says that it is run from a checkout.
LEFT_OUT = ("runners.demo.training", "runners.benchmarking.peers", "runners.verification")

parts = find_packages(
    include=[f"{part}*" for part in ("graph_model", "passes", "conf", "runners")],
    exclude=[f"{part}*" for part in LEFT_OUT],
)
setup(
    packages=["graph_gemma", *(f"graph_gemma.{part}" for part in parts)],
    package_dir={"graph_gemma": "."},
    script_name="setup.py",  # which is in that folder and no module of the package
)
