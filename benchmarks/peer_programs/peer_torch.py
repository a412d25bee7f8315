"""Sequential PyTorch loop: one model, the clients trained one after another.

No FL framework: the global parameters are copied into the model, torch.optim.SGD does the
local steps, and the mean is accumulated in place (torch._foreach_* keeps that to one call).
"""

import torch
from torch.nn.functional import cross_entropy

import common
from torch_models import THREADS, build_model, client_tensors


def main():
    args = common.arguments()
    torch.set_num_threads(THREADS[args.workload])
    torch.manual_seed(0)
    x, y = client_tensors(args.workload, args.clients)
    batch = common.BATCH[args.workload]
    model = build_model(args.workload)
    parameters = list(model.parameters())
    optimizer = torch.optim.SGD(parameters, lr=common.LEARNING_RATE)
    server = [p.detach().clone() for p in parameters]
    clock = common.Clock()
    for _ in range(args.rounds):
        clock.start()
        total = [torch.zeros_like(p) for p in server]
        for client in range(args.clients):
            with torch.no_grad():
                torch._foreach_copy_(parameters, server)
            for rows in torch.randperm(common.SAMPLES).split(batch):
                optimizer.zero_grad()
                cross_entropy(model(x[client][rows]), y[client][rows]).backward()
                optimizer.step()
            with torch.no_grad():
                torch._foreach_add_(total, parameters)
        server = torch._foreach_div(total, args.clients)
        clock.stop()
    common.report("torch", args, clock, server, ["torch", "numpy"])


if __name__ == "__main__":
    main()
