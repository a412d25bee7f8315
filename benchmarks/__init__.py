"""Cost against participants, and against peers: `python -m benchmarks.NAME`."""
