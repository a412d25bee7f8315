"""Flower's simulation engine: run_simulation with its Ray backend and message API.

Features used: ServerApp with the FedAvg strategy (evaluation off, all nodes each round),
ClientApp, one supernode per client; one Ray actor per core, each with one PyTorch thread.
An actor makes the data once and keeps it and the model for all of its clients. A round is
from configure_train to the end of aggregate_train; Flower's telemetry is off. PyTorch's
default initialisation. The memory is the sum over this process and Ray's.
"""

import os

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import torch
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

import common
from flower_client import make_client_app
from torch_models import build_model

ACTORS = 2


class TimedFedAvg(FedAvg):
    def __init__(self, clock, **kwargs):
        super().__init__(**kwargs)
        self.clock = clock

    def configure_train(self, *args, **kwargs):
        self.clock.start()
        return super().configure_train(*args, **kwargs)

    def aggregate_train(self, server_round, replies):
        replies = list(replies)
        if any(reply.has_error() for reply in replies):
            raise RuntimeError("a client failed")
        aggregated = super().aggregate_train(server_round, replies)
        self.clock.stop()
        return aggregated


def main():
    args = common.arguments()
    torch.manual_seed(0)
    clock, result = common.Clock(), {}
    server_app = ServerApp()

    @server_app.main()
    def serve(grid: Grid, context: Context) -> None:
        strategy = TimedFedAvg(
            clock, fraction_train=1.0, fraction_evaluate=0.0,
            min_train_nodes=args.clients, min_available_nodes=args.clients)
        arrays = ArrayRecord(build_model(args.workload).state_dict())
        result["arrays"] = strategy.start(
            grid=grid, initial_arrays=arrays, num_rounds=args.rounds, timeout=36000).arrays
        result["memory"] = common.process_tree_mb()

    run_simulation(
        server_app=server_app, client_app=make_client_app(args.workload, args.clients),
        num_supernodes=args.clients,
        backend_config={"init_args": {"num_cpus": ACTORS},
                        "client_resources": {"num_cpus": 1, "num_gpus": 0.0}})
    common.report("flower", args, clock, result["arrays"].to_numpy_ndarrays(),
                  ["flwr", "ray", "torch", "numpy"], result["memory"])


if __name__ == "__main__":
    main()
