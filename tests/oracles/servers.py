"""What the server does, as the papers say it, one client after the other in float64."""

import numpy as np
import torch


def weighted_mean(tables, weights):
    """sum a_u X_u / sum a_u."""
    total = sum(a * x.astype(np.float64) for a, x in zip(weights, tables, strict=True))
    return (total / sum(weights)).astype(np.float32)


def graph_means(tables, s):
    """GPFedRec: A_u of every client, the mean of its neighbours' tables, `graph_layers` times over."""
    flat = [t.astype(np.float64).ravel() for t in tables]
    likeness = np.array([[_likeness(a, b, s.metric) for b in flat] for a in flat])
    for _ in range(s.graph_layers):
        flat = [np.mean([flat[v] for v in _neighbours(likeness, u, s)], axis=0) for u in range(len(flat))]
    return [f.reshape(t.shape).astype(np.float32) for f, t in zip(flat, tables, strict=True)]


def _likeness(a, b, metric):
    if metric == "euclidean":
        return -np.linalg.norm(a - b)
    cosine = a @ b / (np.linalg.norm(a) * np.linalg.norm(b))
    return 1 - cosine if metric == "cosine_distance" else cosine


def _neighbours(likeness, u, s):
    if s.neighbours:
        return sorted(range(len(likeness)), key=lambda v: -likeness[u, v])[: s.neighbours]
    return [v for v in range(len(likeness)) if likeness[u, v] > s.threshold * likeness.mean()] or [u]


class ServerOptimizer:
    """torch.optim on the shared parameters, the mean change of a round as minus their gradient. Weight decay of the
    clients is no part of it: the step is from the parameters as the decay alone leaves them."""

    def __init__(self, s, params, dense, rounds):
        self.params = {k: torch.nn.Parameter(torch.tensor(v)) for k, v in params.items()}
        groups = [{"params": [p], "lr": s.lr * (s.dense_lr_scale if k in dense else 1)} for k, p in self.params.items()]
        self.optimizer = {
            "sgd": lambda: torch.optim.SGD(groups, lr=s.lr, momentum=s.momentum),
            "adagrad": lambda: torch.optim.Adagrad(groups, lr=s.lr, eps=s.eps),
            "adam": lambda: torch.optim.AdamW(
                groups, lr=s.lr, betas=(s.momentum, s.beta2), eps=s.eps, weight_decay=s.weight_decay
            ),
        }[s.optimizer]()
        self.schedule = {
            "constant": lambda: torch.optim.lr_scheduler.ConstantLR(self.optimizer, 1.0),
            "exponential": lambda: torch.optim.lr_scheduler.ExponentialLR(self.optimizer, s.decay),
            "cosine": lambda: torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, rounds),
        }[s.schedule]()

    def step(self, mean, shrunk):
        """The new shared parameters, where plain averaging gives `mean` and the decay alone `shrunk`."""
        for k, p in self.params.items():
            p.data = torch.tensor(shrunk[k])
            p.grad = p.detach() - torch.tensor(mean[k])
        self.optimizer.step()
        self.schedule.step()
        return {k: p.detach().numpy().copy() for k, p in self.params.items()}
