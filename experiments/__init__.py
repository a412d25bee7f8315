"""The paper's evaluation, as scripts: `python -m experiments.NAME`."""
