"""Seconds a round, participants a second and peak memory against the number of participants.

`--workload cnn|mlp --clients N --rounds R --plain|--attacked` measures one point in this process
and prints one JSON line. Without `--clients` every point runs in a process of its own, plain
and attacked in turn, into `benchmarks/results/participants.jsonl` and a plot.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import RESULTS

POINTS = [("cnn", 20), ("cnn", 100), ("cnn", 500)]
POINTS += [("mlp", 10**exponent) for exponent in range(2, 7)]


def seconds_since_process_start() -> float:
    """From the start that the kernel recorded, or from this module's where it tells none."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    except OSError:
        return time.perf_counter() - STARTED
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


STARTED = time.perf_counter()


def measure(workload: str, clients: int, rounds: int, attacked: bool) -> dict[str, Any]:
    """One point: compile apart from rounds, each waited for."""
    import jax
    import optax

    import mixjax as mx
    from benchmarks import timing, workloads

    timing.keep_freed_memory()
    mx.sharding.use_host_devices()
    play, state, compile_s, mesh = workloads.compiled_round(workload, clients, attacked=attacked)
    seconds, first_round_s = [], 0.0
    for index in range(rounds):
        started = time.perf_counter()
        state = jax.block_until_ready(play(state))
        seconds.append(time.perf_counter() - started)
        if index == 0:
            first_round_s = seconds_since_process_start()
    return {
        "workload": workload,
        "clients": clients,
        "attacked": attacked,
        "first_round_s": round(first_round_s, 3),
        "compile_s": round(compile_s, 3),
        "median_round_s": statistics.median(seconds[1:] or seconds),
        "round_s": [round(one, 6) for one in seconds],
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        "parameter_norm": float(optax.tree.norm(state.params)),
        "devices": [device.device_kind for device in mesh.devices.flat],
        "versions": {
            "python": platform.python_version(),
            "mixjax": mx.__version__,
            **{name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax")},
        },
    }


def sweep(largest: int) -> None:
    """Every point in a process of its own; results and plot are replaced when all are there."""
    records = []
    for workload, clients in POINTS:
        if clients > largest:
            continue
        rounds = 1 if clients >= 1_000_000 else 2 if clients >= 100_000 else 5
        for mode in ("--plain", "--attacked"):
            if clients >= 1_000_000 and mode == "--plain":
                continue
            command = [sys.executable, "-m", "benchmarks.participants", "--workload", workload]
            command += ["--clients", str(clients), "--rounds", str(rounds), mode]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            records.append(json.loads(done.stdout.splitlines()[-1]))
            one = records[-1]
            print(
                f"{workload} C={clients:>9,} {mode[2:]:8} {one['median_round_s']:9.4f} s a round, "
                f"{clients / one['median_round_s']:9,.0f} participants/s, "
                f"{one['peak_rss_mb']:7,.0f} MB, compile {one['compile_s']:.1f} s",
                flush=True,
            )
    RESULTS.mkdir(exist_ok=True)
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (RESULTS / "participants.jsonl").write_text(lines)
    plot(records)


def plot(records: list[dict[str, Any]]) -> None:
    """Seconds a round and peak memory against participants, on log axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained", dpi=100)
    left, right = figure.subplots(1, 2)
    for workload, color in (("cnn", "#d1495b"), ("mlp", "#00798c")):
        for attacked, style in ((False, "o-"), (True, "s--")):
            chosen = [r for r in records if r["workload"] == workload and r["attacked"] == attacked]
            clients = [r["clients"] for r in chosen]
            name = f"{workload}, {'MixNN and ∇Sim' if attacked else 'plain'}"
            left.loglog(
                clients, [r["median_round_s"] for r in chosen], style, color=color, label=name
            )
            right.semilogx(clients, [r["peak_rss_mb"] / 1024 for r in chosen], style, color=color)
    left.set(xlabel="participants in a round", ylabel="seconds a round")
    right.set(xlabel="participants in a round", ylabel="peak memory (GiB)", ylim=(0, None))
    left.legend(frameon=False)
    for axis in (left, right):
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(RESULTS / "participants.png")


def main() -> None:
    """Measure one point, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workload", choices=["cnn", "mlp"], default="mlp")
    parser.add_argument("--clients", type=int, help="measure this one number of participants")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--largest", type=int, default=1_000_000, help="of the sweep")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--plain", action="store_true", help="plain FedAvg (the default)")
    mode.add_argument("--attacked", action="store_true", help="with MixNN and passive ∇Sim")
    options = parser.parse_args()
    if options.clients is None:
        sweep(options.largest)
        return
    if options.clients < 1 or options.rounds < 1:
        parser.error("expected --clients and --rounds of at least 1")
    record = measure(options.workload, options.clients, options.rounds, options.attacked)
    print(json.dumps(record))


if __name__ == "__main__":
    main()
