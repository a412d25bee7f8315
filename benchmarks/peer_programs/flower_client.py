"""The Flower client: in a module of its own, so that Ray's actors import it once.

(Functions of a script's __main__ reach the actors pickled anew with every message, and so
could keep neither data nor model.)
"""

from functools import cache

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch.nn.functional import cross_entropy

import common
from torch_models import build_model, client_tensors


@cache
def actor_state(workload, clients):
    """What an actor keeps for all of its clients: model, optimizer and everyone's data."""
    torch.set_num_threads(1)
    model = build_model(workload)
    optimizer = torch.optim.SGD(model.parameters(), lr=common.LEARNING_RATE)
    return model, optimizer, *client_tensors(workload, clients)


def make_client_app(workload, clients):
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        model, optimizer, x, y = actor_state(workload, clients)
        model.load_state_dict(message.content["arrays"].to_torch_state_dict())
        client = context.node_config["partition-id"]
        for rows in torch.randperm(common.SAMPLES).split(common.BATCH[workload]):
            optimizer.zero_grad()
            cross_entropy(model(x[client][rows]), y[client][rows]).backward()
            optimizer.step()
        content = RecordDict({
            "arrays": ArrayRecord(model.state_dict()),
            "metrics": MetricRecord({"num-examples": common.SAMPLES})})
        return Message(content=content, reply_to=message)

    return app
