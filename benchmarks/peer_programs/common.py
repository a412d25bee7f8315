"""What all peer programs share: command line, data, clock and the closing JSON line.

Importing it also tells glibc's malloc to keep freed memory, see `keep_freed_memory`. Only
numpy is imported here. `first_round_s` counts from the start of the process as the
kernel recorded it (/proc/self/stat), so interpreter start, imports and data are included.
"""

import argparse
import ctypes
import importlib.metadata
import json
import os
import resource
import statistics
import sys
import time

import numpy as np

LEARNING_RATE = 0.05
SAMPLES = 64
BATCH = {"cnn": 32, "mlp": 16}
CLASSES = {"cnn": 10, "mlp": 4}


def keep_freed_memory():
    """Let glibc's malloc reuse large blocks, instead of giving each back to the kernel.

    The same advice as PyTorch's tuning guide gives (there by another allocator). Without it a
    cnn client of the PyTorch loop had 3,000 to 8,000 page faults and took 33 ms, not 23.
    Set PEER_DEFAULT_MALLOC=1 to measure without.
    """
    if "PEER_DEFAULT_MALLOC" not in os.environ:
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
            libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


keep_freed_memory()


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--workload", choices=["cnn", "mlp"], required=True)
    parser.add_argument("--clients", type=int, required=True)
    parser.add_argument("--rounds", type=int, required=True)
    return parser.parse_args()


def client_data(workload, clients):
    """(x, y) of all clients: x[client, sample, ...] float32, y[client, sample] int64."""
    rng = np.random.default_rng(0)
    if workload == "cnn":
        x = rng.standard_normal((clients, SAMPLES, 32, 32, 3), dtype=np.float32)
    else:
        x = rng.standard_normal((clients, SAMPLES, 300), dtype=np.float32)
    return x, rng.integers(0, CLASSES[workload], (clients, SAMPLES))


def seconds_since_process_start():
    with open("/proc/self/stat") as stat:
        ticks = int(stat.read().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


class Clock:
    """Call `start` before and `stop` after every round; `stop` only with results in hand."""

    def __init__(self):
        self.round_s, self.first_round_s = [], None

    def start(self):
        self._t0 = time.perf_counter()

    def stop(self):
        self.round_s.append(time.perf_counter() - self._t0)
        if self.first_round_s is None:
            self.first_round_s = seconds_since_process_start()


def process_tree_mb():
    """Sum of the peak resident memory of this process and all of its descendants."""
    peak, parent = {}, {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/status") as status:
                fields = dict(line.split(":", 1) for line in status)
        except OSError:
            continue
        parent[int(pid)] = int(fields["PPid"])
        peak[int(pid)] = int(fields.get("VmHWM", "0").split()[0]) / 1024

    def descends(pid):
        return pid == os.getpid() or (pid in parent and descends(parent[pid]))

    return sum(mb for pid, mb in peak.items() if descends(pid))


def report(peer, args, clock, parameters, packages, peak_rss_mb=None):
    """Print the JSON line; `parameters` are the final global model's arrays."""
    squares = sum(float(np.sum(np.square(np.asarray(p, np.float64)))) for p in parameters)
    later = clock.round_s[1:]
    if peak_rss_mb is None:
        peak_rss_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    versions = {p: importlib.metadata.version(p) for p in packages}
    versions["python"] = sys.version.split()[0]
    print(json.dumps({
        "peer": peer,
        "workload": args.workload,
        "clients": args.clients,
        "rounds": args.rounds,
        "first_round_s": round(clock.first_round_s, 4),
        "median_round_s": round(statistics.median(later), 6) if later else None,
        "round_s": [round(s, 6) for s in clock.round_s],
        "peak_rss_mb": round(peak_rss_mb, 1),
        "parameter_norm": squares ** 0.5,
        "versions": versions,
    }), flush=True)
