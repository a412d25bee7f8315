"""Cost against participants, and against peers: `python -m benchmarks.NAME`."""

from pathlib import Path

RESULTS = Path(__file__).parent / "results"
