"""BlazeFL 2.0.1: its contrib FedAvg server with its sequential or thread-pool trainer.

Features used: FedAvgBaseServerHandler, FedAvgBaseClientTrainer (one model, clients one
after another) or FedAvgThreadPoolClientTrainer, a PartitionedDataset and a ModelSelector.
The dataset hands out ready-made tensors: `get_dataloader` returns a light iterable that
shuffles with the generator it is given and slices whole batches, instead of a torch
DataLoader that would collate sample by sample. The test set is not used.
"""

from enum import StrEnum

import torch
from blazefl.contrib import (
    FedAvgBaseClientTrainer, FedAvgBaseServerHandler, FedAvgThreadPoolClientTrainer)

import common
from torch_models import build_model, client_tensors

# Measured on two cores, sequential and pool: cnn 23-30 (two threads) and 24 ms a client (and
# the pool suffers far less when another process wants a core), mlp 1.7 and 2.7.
THREAD_POOL = {"cnn": True, "mlp": False}


class Workload(StrEnum):
    CNN = "cnn"
    MLP = "mlp"


class Selector:
    def select_model(self, model_name):
        return build_model(model_name)


class Batches:
    """What a trainer needs of a DataLoader: iterate over shuffled batches of one client."""

    def __init__(self, x, y, batch_size, generator):
        self.x, self.y, self.batch_size, self.generator = x, y, batch_size, generator

    def __iter__(self):
        order = torch.randperm(len(self.y), generator=self.generator)
        for rows in order.split(self.batch_size):
            yield self.x[rows], self.y[rows]


class Clients:
    def __init__(self, workload, clients):
        self.x, self.y = client_tensors(workload, clients)

    def get_dataloader(self, type_, cid, batch_size, generator):
        return Batches(self.x[cid], self.y[cid], batch_size, generator)


def main():
    args = common.arguments()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    shared = dict(
        model_selector=Selector(), model_name=Workload(args.workload),
        dataset=Clients(args.workload, args.clients), num_clients=args.clients, device="cpu",
        batch_size=common.BATCH[args.workload], seed=0)
    server = FedAvgBaseServerHandler(global_round=args.rounds, sample_ratio=1.0, **shared)
    if THREAD_POOL[args.workload]:
        trainer = FedAvgThreadPoolClientTrainer(
            epochs=1, lr=common.LEARNING_RATE, num_parallels=2, **shared)
    else:
        trainer = FedAvgBaseClientTrainer(epochs=1, lr=common.LEARNING_RATE, **shared)
    clock = common.Clock()
    while not server.if_stop():
        clock.start()
        trainer.local_process(server.downlink_package(), server.sample_clients())
        for package in trainer.uplink_package():
            server.load(package)
        clock.stop()
    parameters = [p.detach() for p in server.model.parameters()]
    common.report("blazefl", args, clock, parameters, ["blazefl", "torch", "numpy"])


if __name__ == "__main__":
    main()
