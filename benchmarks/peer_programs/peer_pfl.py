"""pfl (pfl-research): its FederatedAveraging on its simulated backend, with PyTorch.

Features used: SimulatedBackend, FederatedDataset over PyTorchTensorDataset users (batches
cached by pfl, in a fixed order), PyTorchModel with local and central SGD (central learning
rate 1), WeightByUser, no privacy, no evaluation of users in the timed rounds. A callback
reads the clock after each central iteration. The cohort is every client once. For the mlp
the cohort is split over two worker processes (pfl's distributed simulation, as torchrun
would start it); memory is then the sum over both.
"""

import atexit
import os
import socket
import subprocess
import sys

import common

# Measured on two cores, 1 process (cnn: two threads) and 2: cnn 32 and 33 ms a client, mlp
# 2.3 and 1.4.
PROCESSES = {"cnn": 1, "mlp": 2}


def start_second_worker():
    """Set what torchrun would, as pfl reads it when imported, and run rank 1 beside this."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    os.environ.update(
        TORCHELASTIC_RUN_ID="pfl", WORLD_SIZE="2", LOCAL_WORLD_SIZE="2",
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK="1", LOCAL_RANK="1")
    atexit.register(subprocess.Popen([sys.executable, *sys.argv]).kill)
    os.environ.update(RANK="0", LOCAL_RANK="0")


args = common.arguments()
if PROCESSES[args.workload] == 2 and "RANK" not in os.environ:
    start_second_worker()

import numpy as np  # noqa: E402, as the rest: pfl reads the environment when imported
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByUser
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam.base import NNTrainHyperParams
from pfl.metrics import Metrics
from pfl.model.pytorch import PyTorchModel
from torch.nn.functional import cross_entropy

from torch_models import THREADS, build_model, client_tensors


class Classifier(torch.nn.Module):
    def __init__(self, workload):
        super().__init__()
        self.layers = build_model(workload)

    def loss(self, x, y):
        return cross_entropy(self.layers(x), y)

    def metrics(self, x, y):
        return {}  # pfl evaluates the users of round 0: no work, to keep the rounds equal


class RoundClock(TrainingProcessCallback):
    def __init__(self, clock):
        self.clock = clock

    def on_train_begin(self, *, model):
        self.clock.start()
        return Metrics()

    def after_central_iteration(self, aggregate_metrics, model, *, central_iteration):
        self.clock.stop()
        self.clock.start()
        return False, Metrics()


def main():
    torch.set_num_threads(THREADS[args.workload])
    torch.manual_seed(0)
    np.random.seed(0)  # pfl draws its seeds from here: every worker must sample the same users
    x, y = client_tensors(args.workload, args.clients)
    users = [PyTorchTensorDataset((x[i], y[i]), user_id=str(i)) for i in range(args.clients)]
    sampler = get_user_sampler("minimize_reuse", list(range(args.clients)))
    data = FederatedDataset(users.__getitem__, sampler)
    classifier = Classifier(args.workload)
    model = PyTorchModel(
        classifier, torch.optim.SGD, torch.optim.SGD(classifier.parameters(), lr=1.0))
    backend = SimulatedBackend(data, None, postprocessors=[WeightByUser()])
    clock = common.Clock()
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=args.rounds, evaluation_frequency=args.rounds,
            train_cohort_size=args.clients, val_cohort_size=None),
        backend, model,
        NNTrainHyperParams(
            local_num_epochs=1, local_learning_rate=common.LEARNING_RATE,
            local_batch_size=common.BATCH[args.workload]),
        callbacks=[RoundClock(clock)], send_metrics_to_platform=False)
    parameters = [p.detach() for p in classifier.parameters()]
    if os.environ.get("RANK", "0") == "0":
        common.report("pfl", args, clock, parameters, ["pfl", "torch", "numpy"],
                      common.process_tree_mb())


if __name__ == "__main__":
    main()
