"""The same rounds by other simulators, each in a venv of its own, taking turns with ours.

`python -m benchmarks.peers --workload cnn --clients 100` makes the venvs it misses under
`benchmarks/.venvs`, runs every program in turn for a few repetitions, and writes a table and
`benchmarks/results/peers.jsonl`. A peer that can't be installed or run is listed as such.
All programs, ours included, tell the allocator to keep freed memory (peer_programs/common.py).
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks import RESULTS

HERE = Path(__file__).parent
PROGRAMS = HERE / "peer_programs"
VENVS = HERE / ".venvs"
PEERS = ("torch", "blazefl", "pfl", "fedjax", "flower", "drjax", "drjax_plain", "scan")
# blazefl 2.0.1 declares Python 3.12 and later, and its code runs on 3.11
EXTRA_PIP = {"blazefl": ["--ignore-requires-python"]}
# a round of grouped convolutions takes minutes beyond this
LARGEST = {("drjax_plain", "cnn"): 20}


def install(peer: str) -> str | None:
    """Make the peer's venv; returns what went wrong."""
    venv = VENVS / peer
    if (venv / "installed").exists():
        return None
    requirements = PROGRAMS / f"requirements-{peer}.txt"
    pip = [str(venv / "bin/python"), "-m", "pip", "install", "--quiet"]
    for command in (
        [sys.executable, "-m", "venv", str(venv)],
        [*pip, *EXTRA_PIP.get(peer, []), "-r", str(requirements)],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            return f"not installed: {done.stderr.strip().splitlines()[-1]}"
    (venv / "installed").touch()
    return None


def run(peer: str, options: argparse.Namespace) -> dict[str, Any]:
    """One repetition of one program: its JSON line, or what went wrong."""
    arguments = ["--workload", options.workload, "--clients", str(options.clients)]
    arguments += ["--rounds", str(options.rounds)]
    if peer == "mixjax":
        command = [sys.executable, "-m", "benchmarks.participants", *arguments]
        folder = HERE.parent
    else:
        command = [str(VENVS / peer / "bin/python"), f"peer_{peer}.py", *arguments]
        folder = PROGRAMS
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=options.timeout
        )
    except subprocess.TimeoutExpired:
        return {"peer": peer, "error": f"no result within {options.timeout} s"}
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        return {"peer": peer, "error": f"exit code {done.returncode}: {lines[-1]}"}
    return {"peer": peer} | json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    """Install, run in turn, and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workload", choices=["cnn", "mlp"], required=True)
    parser.add_argument("--clients", type=int, required=True)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--timeout", type=int, default=300, help="seconds for one run")
    parser.add_argument("--only", nargs="*", choices=PEERS, default=PEERS)
    options = parser.parse_args()

    failures, ready = {}, ["mixjax"]
    for peer in options.only:
        if options.clients > LARGEST.get((peer, options.workload), options.clients):
            failures[peer] = f"not run above C={LARGEST[peer, options.workload]}: minutes a round"
            continue
        print(f"preparing {peer}", file=sys.stderr, flush=True)
        problem = install(peer)
        if problem:
            failures[peer] = problem
        else:
            ready.append(peer)

    records: list[dict[str, Any]] = []
    for repeat in range(options.repeats):
        for peer in list(ready):
            record = run(peer, options) | {"repeat": repeat}
            records.append(record)
            if "error" in record:
                failures[peer] = record["error"]
                ready.remove(peer)
            print(f"repeat {repeat + 1}: {peer}", file=sys.stderr, flush=True)
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / "peers.jsonl").open("a") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)
    report(options, ready, failures, records)


def report(
    options: argparse.Namespace,
    ready: list[str],
    failures: dict[str, str],
    records: list[dict[str, Any]],
) -> None:
    """Medians over repetitions, and the median of the ratios to ours, repetition by repetition."""
    print(f"\n{options.workload}, C = {options.clients}\n")
    print("| simulator | ms a client | times ours | first round, s | peak MB |")
    print("|---|---|---|---|---|")
    by_peer = {peer: [r for r in records if r["peer"] == peer] for peer in ready}
    ours = [r["median_round_s"] for r in by_peer["mixjax"]] if "mixjax" in by_peer else []
    for peer, own in by_peer.items():
        seconds = [r["median_round_s"] for r in own]
        ratio = statistics.median(a / b for a, b in zip(seconds, ours, strict=False))
        print(
            f"| {peer} | {1e3 * statistics.median(seconds) / options.clients:.3f} | {ratio:.2f} "
            f"| {statistics.median(r['first_round_s'] for r in own):.1f} "
            f"| {max(r['peak_rss_mb'] for r in own):,.0f} |"
        )
    for peer, problem in failures.items():
        print(f"| {peer} | {problem} | | | |")


if __name__ == "__main__":
    main()
