"""The naive loop under `fedvlr`, from the paper's equations: the server's views by torch modules in float64, a client's
mixture of them by autograd, and back from the clients' mean steps into D and the operators by autograd again.

It shares with the package the names and starting values of the parameters; not the views, the router or the way back.
"""

import numpy as np
import torch
from torch.nn import Linear, ModuleDict
from torch.nn.functional import linear, relu

from tests.oracles.client_models import OPERATOR, TABLE, VIEW, FedNCF
from tests.oracles.naive_loop import Federation, federation, phases
from tests.oracles.servers import weighted_mean

ROUTER, STEP = "router_", "step/"


class Mixed:
    """A backbone's client on rows z_i = sum_j w_j F_j(i), to which FedNCF and GPFedRec add their own: q_i + z_i.

    Where the views are fixed, the steps that their rows would make are added up in `steps`.
    """

    settings, fixed, followed = None, True, ""

    def __init__(self, values, *rest):
        super().__init__(values, *rest)
        self.views = [VIEW + v for v in self.settings.views]
        self.steps = {k: torch.zeros_like(getattr(self, k)) for k in self.views}

    def rows(self, item):
        fused = self.mixed([getattr(self, k)[item] for k in self.views])
        return fused + super().rows(item) if isinstance(self, FedNCF) else fused

    def mixed(self, views):
        if len(views) == 1:
            return views[0]
        hidden = relu(linear(torch.cat(views, dim=1), self.router_1_weight, self.router_1_bias))
        w = torch.softmax(linear(hidden, self.router_2_weight, self.router_2_bias), dim=1)
        if self.settings.weights == "client":
            mean = w.mean(dim=0)
            mean = torch.softmax(mean, dim=0) if self.settings.softmax == "double" else mean
            w = mean.repeat(len(w), 1)
        return sum(w[:, j, None] * view for j, view in enumerate(views))

    def before_step(self, optimizer):
        for group in optimizer.param_groups if self.fixed else ():
            for k in self.views:
                if group["params"][0] is getattr(self, k):
                    self.steps[k] -= group["lr"] * getattr(self, k).grad
                    getattr(self, k).grad = None  # which leaves it where it is

    def arrays(self):
        return {**super().arrays(), **{STEP + k: v.numpy() for k, v in self.steps.items()}}

    @classmethod
    def shared(cls, name):
        return name.startswith(VIEW) or (not name.startswith(ROUTER) and super().shared(name))

    @classmethod
    def rate(cls, name, s, n_items):
        """A view's is the item table's, the router's that of the score function."""
        if name.startswith(ROUTER):
            return s.lr * cls.settings.router_lr_scale
        return super().rate(TABLE if name.startswith(VIEW) else name, s, n_items)


class Operators(torch.nn.Module):
    """Projections h_m and operators g_j. start: their parameters by the package's names."""

    def __init__(self, start, settings, features, added):
        super().__init__()
        self.views, self.residual, self.added, self.parts = settings.views, settings.residual, added, ModuleDict()
        for name in (k for k in start if k.endswith("_weight")):
            _, part, layer = name.removesuffix("_weight").split("/")
            made = Linear(*start[name].shape[::-1], dtype=torch.float64)
            made.weight.data = torch.from_numpy(start[name]).double()
            made.bias.data = torch.from_numpy(start[name.removesuffix("weight") + "bias"]).double()
            self.parts.update({part: self.parts[part] if part in self.parts else ModuleDict()})
            self.parts[part][layer] = made
        chosen = sorted(features.tables.keys() & self.parts.keys())
        self.content = {m: self.normalised(features.tables[m], features.present[m]) for m in chosen}

    @staticmethod
    def normalised(table, there):
        """(which items have it, what they have with columns of mean 0 and numbers of mean square 1)."""
        x = torch.from_numpy(table[there]).double()
        x = x - x.mean(dim=0)
        return torch.from_numpy(there.copy()), x / x.square().mean().sqrt()

    def forward(self, ids):
        """name -> view."""
        parts = {"id": ids}
        for m, (there, content) in self.content.items():
            projected = self.parts[m]["projection"](content)
            parts[m] = torch.zeros_like(ids).index_put((torch.where(there)[0],), projected)
        return {VIEW + v: self.view(v, parts) for v in self.views}

    def view(self, name, parts):
        """Residual: D and what is on top of it; without D where the backbone adds its own."""
        if not self.residual:
            return getattr(self, name)(parts)
        rest = parts["id"] * (0.0 if self.added else 1.0)
        if name in self.parts:
            return getattr(self, name)(parts) + rest
        return getattr(self, name)({**parts, "id": rest})

    def id(self, x):
        return x["id"]

    def sum(self, x):
        return sum(x.values())

    def mlp(self, x):
        layers = self.parts["mlp"]
        return layers["output"](relu(layers["hidden"](torch.cat(list(x.values()), dim=1))))

    def gate(self, x):
        layers = self.parts["gate"]
        return layers["output"](torch.cat([v * torch.sigmoid(layers[f"gate_{k}"](v)) for k, v in x.items()], dim=1))

    def arrays(self):
        named = ((k.removeprefix("parts.").split("."), v) for k, v in self.named_parameters())
        return {f"{OPERATOR}{part}/{layer}_{kind}": v.detach().float().numpy() for (part, layer, kind), v in named}


class Fused(Federation):
    """server: what the backbone shares, D among it. operators: the server's own. sent: the views of the next round."""

    def __init__(self, host, features):
        super().__init__(host)
        self.settings = s = host.config.plugins["fedvlr"]
        self.dual, self.added = "dualper" in host.config.plugins, issubclass(self.kind, FedNCF)
        followed = TABLE if self.added else VIEW + s.views[0]
        fixed = s.rows == "fixed" and not self.dual
        self.kind = type("Fused", (Mixed, self.kind), {"settings": s, "fixed": fixed, "followed": followed})
        start = host.method.init_server(host.config.seed)
        mine = {k: v for k, v in start.items() if k.startswith(OPERATOR)}
        self.operators = Operators(mine, s, features, self.added)
        make = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[s.operator_optimizer]
        moving = list(self.operators.parameters())  # none: a single view that is D
        self.moving = make(moving, lr=s.operator_lr)
        self.sent = self.views()

    def views(self):
        """Of D as it is."""
        made = self.operators(torch.from_numpy(self.server[TABLE]).double())
        return {k: v.detach().float().numpy() for k, v in made.items()}

    def down(self):
        """What a client gets: the views; D only where it stands beside them."""
        return {**{k: v for k, v in self.server.items() if k != TABLE or self.added}, **self.sent}

    def own(self, c):
        """What never leaves client c."""
        return {k: v for k, v in self.client[c].items() if not k.startswith((VIEW, STEP))}

    def model(self, c, round_):
        target = self.target.get(c, self.server[TABLE])
        return self.kind({**self.own(c), **self.down()}, self.config.backbone, round_, target)

    def upload(self, c, name):
        """A client without D leaves it as it was, but for its decay."""
        return self.server[TABLE] * self.left[c] if name == TABLE and not self.added else self.client[c][name]

    def step(self, c, view):
        """What client c made of a view, its decay apart."""
        fixed = self.kind.fixed
        return self.client[c][STEP + view] if fixed else self.client[c][view] - self.left[c] * self.sent[view]

    def with_views(self, mean, who, weights):
        """D at `mean` and what the views say of it; the operators step."""
        ids = torch.from_numpy(self.server[TABLE]).double().requires_grad_()
        steps = {k: weighted_mean([self.step(c, k) for c in who], weights) for k in self.sent}
        total = sum((v * torch.from_numpy(steps[k])).sum() for k, v in self.operators(ids).items())
        moving = list(self.operators.parameters())
        moved, *towards = torch.autograd.grad(total, [ids, *moving])
        for p, t in zip(moving, towards, strict=True):
            p.grad = -t / self.rate()
        self.moving.step()
        return {**mean, TABLE: (mean[TABLE] + moved.numpy()).astype(np.float32)}

    def rate(self):
        """At which the clients' steps of this round began."""
        view = VIEW + self.settings.views[0]
        steps = phases(self.kind, self.config, [view], self.host.data.n_items, len(self.loss) - 1)
        return max(p.get(view, 0.0) for p in steps)

    def serve(self, who, n_samples):
        super().serve(who, n_samples)
        self.sent = self.views()

    def ranks_with(self, c):
        """Under dualper its own views, in GPFedRec its own E_u."""
        own = {k: v for k, v in self.client[c].items() if not k.startswith(STEP)}
        keep = [k for k in own if (self.dual and k.startswith(VIEW)) or (k == TABLE and (self.dual or self.target))]
        return {**own, **{k: v for k, v in self.down().items() if k not in keep}}


def loop_of(host, features=None):
    """The naive loop of a host, before any round."""
    return Fused(host, features) if "fedvlr" in host.config.plugins else Federation(host)


def fused_federation(host, features):
    """A whole run."""
    return federation(host, Fused(host, features))
