"""Models and data for the PyTorch-based peers (PyTorch's default initialisation).

The images are an NCHW view of the NHWC array, that is, in PyTorch's channels_last memory
format: with oneDNN's convolutions a cnn client then took 22 ms instead of 31 ms.
"""

import torch
from torch import nn

import common

# Measured on two cores: cnn 1 thread 42 ms a client, 2 threads 31 ms (NCHW); mlp 1.5 and
# 1.75 ms. Peers that train two clients at once use one thread for each of them.
THREADS = {"cnn": 2, "mlp": 1}


def build_model(workload):
    if workload == "mlp":
        return nn.Sequential(
            nn.Linear(300, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 4))
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(64 * 8 * 8, 128), nn.ReLU(), nn.Linear(128, 10))


def client_tensors(workload, clients):
    x, y = map(torch.from_numpy, common.client_data(workload, clients))
    return (x.permute(0, 1, 4, 2, 3) if workload == "cnn" else x), y
