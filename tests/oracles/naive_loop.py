"""A federated round as the pseudocode reads: one client after the other, each with a whole copy of the item table,
torch.optim.SGD or Adam on autograd, and a mean of whole tables in float64.

It shares with the package the samples (drawn per client, so there is nothing to vectorise in them) and the starting
values; not the rows, the decay factors, the kernels, the padding or the fixed-point sums.
"""

import numpy as np
import torch

from fedray.data.blocks import RoundSamples


class LinearClient(torch.nn.Module):
    """y = sigmoid(w . E[i] + b) with the client's own whole copy of E."""

    def __init__(self, table, weight, bias):
        super().__init__()
        self.item_embedding = torch.nn.Parameter(torch.tensor(table))
        self.head_weight = torch.nn.Parameter(torch.tensor(weight))
        self.head_bias = torch.nn.Parameter(torch.tensor(bias))

    def forward(self, item):
        return self.item_embedding[item] @ self.head_weight + self.head_bias


def train_client(model, items, labels, order, batch_size, phases, weight_decay, optimizer="sgd"):
    """All local epochs of one client; phases are dicts parameter name -> learning rate, run in turn per batch."""
    make = torch.optim.SGD if optimizer == "sgd" else torch.optim.Adam
    steps = [
        make([{"params": [getattr(model, k)], "lr": lr} for k, lr in p.items()], lr=0.0, weight_decay=weight_decay)
        for p in phases
    ]
    loss_of = torch.nn.BCEWithLogitsLoss()
    for epoch in order:
        for first in range(0, len(epoch), batch_size):
            now = torch.from_numpy(epoch[first : first + batch_size].astype(np.int64))
            for step in steps:
                model.zero_grad()
                loss_of(model(items[now]), labels[now]).backward()
                step.step()


def one_round(table, heads, samples: RoundSamples, phases, batch_size, weight_decay, weights=None, optimizer="sgd"):
    """The new table, and `heads` (client -> (w, b, own table)) updated in place."""
    total, mass = np.zeros(table.shape), 0.0
    for c, client in enumerate(samples.client):
        lo, hi = samples.sample_ptr[c], samples.sample_ptr[c + 1]
        if lo == hi:
            continue
        own = samples.rows[samples.row_ptr[c] : samples.row_ptr[c + 1]]
        items = torch.from_numpy(own[samples.item[lo:hi]].astype(np.int64))
        labels = torch.from_numpy(samples.label[lo:hi])
        model = LinearClient(table, *heads[client][:2])
        train_client(model, items, labels, samples.order[:, lo:hi], batch_size, phases, weight_decay, optimizer)
        parts = (model.head_weight, model.head_bias, model.item_embedding)
        heads[client] = tuple(p.detach().numpy() for p in parts)
        a = 1.0 if weights is None else float(weights[c])
        total, mass = total + a * heads[client][2].astype(np.float64), mass + a
    return (total / mass).astype(np.float32)
