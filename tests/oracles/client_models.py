"""Clients as torch modules, written from the papers' equations: a client has whole item tables of its own.

Parameters have the package's names, so that starts and results can be compared name by name. A class says which of
them are shared, and the learning rate of each before any decay over rounds; everything else is autograd's.
"""

import math

import torch
from torch.nn.functional import linear, mse_loss, relu

TABLE, PERSONAL, USER = "item_embedding", "personal_item_embedding", "user_embedding"
TABLES, VIEW, OPERATOR, GROUPED = (TABLE, PERSONAL), "view/", "operator/", "gfmfr/"


def is_table(name):
    """Of items."""
    return name in TABLES or name.startswith(VIEW)


class Client(torch.nn.Module):
    """values: name -> where the parameter starts; s: the backbone's settings; target: A_u of GPFedRec."""

    followed = TABLE
    """Of which shared table's rows it is noted what weight decay alone makes of them."""

    def __init__(self, values, s, round_=0, target=None):
        super().__init__()
        for name, value in values.items():
            self.register_parameter(name, torch.nn.Parameter(torch.tensor(value)))
        self.s, self.round, self.target = s, round_, target

    def rows(self, item):
        """The shared item rows that the score is made of."""
        return self.item_embedding[item]

    def terms(self, item):
        """Of the batch's loss, beside its fit."""
        return 0.0

    def joined(self, base, logit, item, first):
        """The batch's loss with what a plug-in adds to it; first: of the updates of a step."""
        return base

    def pull(self):
        """A term on whole tables; it is not in the loss that a round reports."""
        return 0.0

    def before_step(self, optimizer):
        """The gradients are there, nothing has moved."""

    def arrays(self):
        return {k: v.detach().numpy() for k, v in self.named_parameters()}

    @staticmethod
    def shared(name):
        return name == TABLE


class FCF(Client):
    """y = sigmoid(w . E_i + b), with an item bias + E_i's last number."""

    def forward(self, item):
        return self.head(self.rows(item))

    def head(self, rows):
        w = self.head_weight
        bias = rows[:, len(w)] if rows.shape[1] > len(w) else 0.0
        return rows[:, : len(w)] @ w + bias + self.head_bias

    @staticmethod
    def rate(name, s, n_items):
        return s.lr * n_items * s.item_lr_scale if name == TABLE else s.lr


class FedAvg(FCF):
    """The same with one learning rate."""

    @staticmethod
    def rate(name, s, n_items):
        return s.lr


class FedRAP(FCF):
    """y = sigmoid(w . (P_i + E_i) + b); fit - lambda MSE(P_B, E_B) + mu mean |E_B|."""

    def forward(self, item):
        e, p = self.rows(item), self.personal_item_embedding[item]
        return self.head(torch.cat([e[:, : p.shape[1]] + p, e[:, p.shape[1] :]], dim=1))

    def terms(self, item):
        p = self.personal_item_embedding[item]
        e = self.rows(item)[:, : p.shape[1]]
        ramp = math.tanh(self.round / 10) if self.s.schedule == "tanh" else 1.0
        size = e.abs().mean() if self.s.sparsity_norm == "l1" else (e**2).mean()
        return ramp * (self.s.sparsity * size - self.s.independence * mse_loss(p, e))

    @staticmethod
    def rate(name, s, n_items):
        scale = {TABLE: 1.0, PERSONAL: s.personal_lr_scale}
        return s.item_lr * scale[name] if name in scale else s.lr


class FedNCF(Client):
    """Layers on [p_u ; E_i]; where the vectors are wider than the first layer (NeuMF), the product of their second
    parts joins the last one."""

    def forward(self, item):
        p, e = self.user_embedding, self.rows(item)
        d = self.mlp_1_item_weight.shape[1]
        h = torch.cat([p[:d].expand(len(e), d), e[:, :d]], dim=1)
        first = torch.cat([self.mlp_1_user_weight, self.mlp_1_item_weight], dim=1)
        h = relu(linear(h, first, self.mlp_1_bias))
        for i in range(2, len(self.s.hidden) + 1):
            h = relu(linear(h, getattr(self, f"mlp_{i}_weight"), getattr(self, f"mlp_{i}_bias")))
        return torch.cat([h, p[d:] * e[:, d:]], dim=1) @ self.output_weight + self.output_bias

    @staticmethod
    def shared(name):
        return name != USER

    @staticmethod
    def rate(name, s, n_items):
        return s.lr * {TABLE: n_items * s.item_lr_scale, USER: s.user_lr_scale}.get(name, 1.0)


class GPFedRec(FedNCF):
    """The same network, all private but E_u, which is pulled to A_u."""

    def pull(self):
        return self.s.reg * mse_loss(self.item_embedding, torch.from_numpy(self.target))

    @staticmethod
    def shared(name):
        return name == TABLE


KINDS = {"fcf": FCF, "fedavg": FedAvg, "fedrap": FedRAP, "fedncf": FedNCF, "gpfedrec": GPFedRec}
