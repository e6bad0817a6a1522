"""A federation as the pseudocode reads: one client after the other, each with whole copies of its item tables,
torch.optim.SGD or Adam on autograd, and a mean of whole tables in float64.

It shares with the package the samples (drawn per client, so there is nothing to vectorise in them), who is in a
round, and the starting values; not the rows, the decay factors, the kernels, the padding or the fixed-point sums.
"""

import math

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

from fedray.data.blocks import RoundSamples
from fedray.federated.clients import samples_of
from fedray.federated.cohort import members, threshold
from tests.oracles.client_models import GROUPED, KINDS, OPERATOR, TABLE, TABLES, is_table
from tests.oracles.servers import ServerOptimizer, graph_means, weighted_mean


def phases(kind, config, names, n_items, round_):
    """The updates of one local step, in turn: name -> learning rate."""
    s = config.backbone
    steps = [{k: kind.rate(k, s, n_items) * s.lr_decay**round_ for k in names}]
    if dual := config.plugins.get("dualper"):  # the score function, then the items at its new values
        items = {k: lr * dual.item_lr_scale for k, lr in steps[0].items() if is_table(k)}
        steps = [{k: lr for k, lr in steps[0].items() if not is_table(k)}, items]
    if n := config.train.private_steps:
        own = [{k: lr for k, lr in p.items() if _private(kind, k)} for p in steps]
        rest = [{k: lr for k, lr in p.items() if not _private(kind, k)} for p in steps]
        steps = [p for a, b in zip(own, rest) for p in [a] * n + [b] if p]
    return steps


def _private(kind, name):
    """Private, and no item table: what `private_steps` and `private_weight_decay` are about."""
    return not kind.shared(name) and not is_table(name)


def train_client(model, items, labels, order, steps, train, step_decay=1.0):
    """All local epochs of one client; its mean loss over samples, each before the step that it is in, and what weight
    decay alone would leave of an item row, as a factor."""
    decay = train.weight_decay if train.private_weight_decay is None else train.private_weight_decay
    make = torch.optim.SGD if train.optimizer == "sgd" else torch.optim.Adam
    optimizers = []
    for rates in steps:
        decays = {k: decay if _private(type(model), k) else train.weight_decay for k in rates}
        groups = [{"params": [getattr(model, k)], "lr": lr, "weight_decay": decays[k]} for k, lr in rates.items()]
        optimizers.append(make(groups, lr=0.0))
    slower = [torch.optim.lr_scheduler.ExponentialLR(o, step_decay) for o in optimizers if step_decay < 1]
    total, left = 0.0, 1.0
    for epoch in order:
        for first in range(0, len(epoch), train.batch_size):
            now = torch.from_numpy(epoch[first : first + train.batch_size].astype(np.int64))
            for i, optimizer in enumerate(optimizers):
                model.zero_grad()
                logit = model(items[now])
                loss = fit(train.loss, logit, labels[now]) + model.terms(items[now])
                loss = model.joined(loss, logit, items[now], i == 0)
                (loss + model.pull()).backward()
                model.before_step(optimizer)
                optimizer.step()
                table = getattr(model, model.followed)
                moving = [g for g in optimizer.param_groups if g["params"][0] is table and table.grad is not None]
                left *= math.prod(1 - g["lr"] * g["weight_decay"] for g in moving)
                total += loss.item() * len(now) if i == 0 else 0.0
            for schedule in slower:
                schedule.step()
    return total / order.size, left


def fit(kind, logit, label):
    """Binary cross-entropy; or BPR over pairs, whose positives and negatives come in the same order."""
    if kind == "bce":
        return binary_cross_entropy_with_logits(logit, label)
    return -logsigmoid(logit[label == 1] - logit[label == 0]).mean()


def samples_for(samples: RoundSamples, i):
    """(items, labels, order) of the i-th client."""
    lo, hi = samples.sample_ptr[i], samples.sample_ptr[i + 1]
    own = samples.rows[samples.row_ptr[i] : samples.row_ptr[i + 1]]
    items = torch.from_numpy(own[samples.item[lo:hi]].astype(np.int64))
    return items, torch.from_numpy(samples.label[lo:hi]), samples.order[:, lo:hi]


class Federation:
    """server: the shared parameters. client[c]: everything that client c has since its last round, its own copies of
    shared parameters included. loss: each round's mean over clients."""

    def __init__(self, host, features=None):
        config, method, ids = host.config, host.method, host.data.client
        self.host, self.config, self.kind = host, config, KINDS[config.backbone.name]
        own, tables = method.init_clients(config.seed, ids), method.init_private_rows(config.seed)
        self.client = [{**{k: v[c] for k, v in own.items()}, **tables} for c in range(len(ids))]
        self.server = {
            k: v for k, v in method.init_server(config.seed).items() if not k.startswith((OPERATOR, GROUPED))
        }
        self.target, self.loss = {}, []
        self.optimizer, self.left = None, {}
        if s := config.plugins.get("fedopt"):
            dense = self.server.keys() - {TABLE}
            self.optimizer = ServerOptimizer(s, self.server, dense, config.train.rounds)

    def model(self, c, round_):
        """Client c at the start of a round."""
        target = self.target.get(c, self.server[TABLE])
        return self.kind({**self.client[c], **self.server}, self.config.backbone, round_, target)

    def train(self, c, round_, samples, i):
        """A round of client c, whose samples are the i-th; its mean loss."""
        model, n_items = self.model(c, round_), self.host.data.n_items
        steps = phases(self.kind, self.config, dict(model.named_parameters()), n_items, round_)
        step_decay = getattr(self.config.backbone, "step_decay", 1.0)
        loss, self.left[c] = train_client(model, *samples_for(samples, i), steps, self.config.train, step_decay)
        self.client[c] = model.arrays()
        return loss

    def round(self, round_):
        """A whole round."""
        config, ids = self.config, self.host.data.client
        limit = threshold(config.seed, round_, ids, config.train.clients_per_round)
        who = np.flatnonzero(members(config.seed, round_, ids, limit) & (self.host.data.train.lengths() > 0))
        samples = samples_of(self.host, who, round_)
        self.loss.append(np.mean([self.train(c, round_, samples, i) for i, c in enumerate(who)]))
        self.serve(who, samples.n_samples())

    def serve(self, who, n_samples):
        """The server's part: means, GPFedRec's graph, the server's optimiser."""
        s = self.config.backbone
        by_samples = s.name == "fedavg" or getattr(s, "weighting", "") == "samples"
        weights = [float(n) if by_samples else 1.0 for n in n_samples]
        uploads = {k: [self.upload(c, k) for c in who] for k in self.server}
        if s.name == "gpfedrec":
            uploads[TABLE] = graph_means(uploads[TABLE], s)
            self.target = dict(zip(who, uploads[TABLE], strict=True))
        mean = self.with_views({k: weighted_mean(v, weights) for k, v in uploads.items()}, who, weights)
        summed = s.name != "gpfedrec"  # its tables come whole, the decay with the rest
        left = np.average([self.left[c] for c in who], weights=weights) if summed else 1.0
        shrunk = {**self.server, TABLE: self.server[TABLE] * np.float32(left)}
        self.server = self.optimizer.step(mean, shrunk) if self.optimizer else mean

    def upload(self, c, name):
        """A shared parameter as client c has it after the round."""
        return self.client[c][name]

    def with_views(self, mean, who, weights):
        """The mean over clients, and what they send beside it."""
        return mean

    def ranks_with(self, c):
        """Everything that client c scores items with: under dualper its own item tables, in GPFedRec all its own."""
        keep = TABLES if "dualper" in self.config.plugins or self.config.backbone.name == "gpfedrec" else ()
        return {**self.client[c], **{k: v for k, v in self.server.items() if k not in keep or k not in self.client[c]}}

    def scores(self, c):
        """Of all items."""
        model = self.kind(self.ranks_with(c), self.config.backbone)
        return model(torch.arange(self.host.data.n_items)).detach().numpy()


def federation(host, found=None):
    """A whole run, of `found` if it is there."""
    found = found or Federation(host)
    for round_ in range(host.config.train.rounds):
        found.round(round_)
    return found
