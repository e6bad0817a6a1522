"""The naive loop under `gfmfr`, from the paper's equations: clients with a KL term on autograd; on the server vectors,
labels, means of whole tables, and a fusion network fitted tuple by tuple (group, item) by torch.optim in float64.

It shares with the package the names and starting values of the parameters, the keys and orders drawn from them, and
scikit-learn's k-means; not the KL term, the ratio, the affinities, the names of groups, the sums, the fit or the
teacher.
"""

from itertools import permutations, product

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch.distributions import Bernoulli, kl_divergence
from torch.nn.functional import linear, mse_loss, relu

from fedray import seeding
from fedray.models.group_fusion import GroupFusion
from tests.oracles.client_models import GROUPED, KINDS, PERSONAL, TABLE, USER, is_table
from tests.oracles.fused import ROUTER, STEP, Fused, Operators
from tests.oracles.naive_loop import Federation, federation

RATIO = GROUPED + "ratio"
MARGIN = 1e-4
"""Labels count where noise of this size on the standardised vectors changes none of them."""


class UnclearGroupsError(AssertionError):
    """Rounding, or the order of a search, may decide about a label: take other data, or another seed."""


class Guided:
    """A backbone's client with soft labels: q of all items (None: no group), lam, and the client's ratio, which is
    kept in place; memory: what the ratio keeps of itself (None: it does not count)."""

    q, lam, ratio, memory = None, 0.0, None, None

    def joined(self, base, logit, item, first):
        """loss + lam KL((q, 1 - q), (p, 1 - p)), under BPR on all samples, too."""
        if self.q is None:
            return base
        own = Bernoulli(logits=logit.double())
        kl = kl_divergence(Bernoulli(torch.from_numpy(self.q).double()[item]), own).mean()
        if first and self.memory is not None:
            now = base.item() / (kl.item() + 1e-8)
            seen = not np.isnan(self.ratio[0])
            self.ratio[0] = self.memory * self.ratio[0] + (1 - self.memory) * now if seen else now
        return base + self.lam * (1.0 if self.memory is None else self.ratio[0]) * kl


class Network(torch.nn.Module):
    """S(A e_l + a, P_m c_im + p_m, ...) of tuples (l, i). start: parameters by the package's names."""

    def __init__(self, start, fusion, content):
        super().__init__()
        for k, v in start.items():
            self.register_parameter(k, torch.nn.Parameter(torch.from_numpy(v).double()))
        self.fusion, self.content = fusion, content

    def forward(self, group, item):
        x = {"id": self.layer("projection", getattr(self, "group/embedding")[group])}
        for m, (there, table) in self.content.items():
            x[m] = self.layer(f"feature/{m}/projection", table[item]) * there[item, None]
        return getattr(self, self.fusion)(x)

    def layer(self, name, x):
        return linear(x, getattr(self, f"group/{name}_weight"), getattr(self, f"group/{name}_bias"))

    def sum(self, x):
        return sum(x.values())

    def mlp(self, x):
        return self.layer("fusion/output", relu(self.layer("fusion/hidden", torch.cat(list(x.values()), dim=1))))

    def gate(self, x):
        gated = [v * torch.sigmoid(self.layer(f"fusion/gate_{k}", v)) for k, v in x.items()]
        return self.layer("fusion/output", torch.cat(gated, dim=1))

    def fit(self, tables, s, epochs):
        """Moved on towards C_l: tables[l] of the groups that have members. epochs: of them, of steps, their tuples
        (group, item). The last epoch's mean loss, nan if there is none."""
        mine, losses = getattr(self, "group/embedding"), [np.nan]
        alone = torch.tensor([[float(g in tables)] for g in range(len(mine))])
        make = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[s.fit_optimizer]
        optimizer = make(self.parameters(), lr=s.fit_lr, weight_decay=s.fit_weight_decay)
        nothing = np.zeros_like(next(iter(tables.values())))
        wanted = torch.from_numpy(np.stack([tables.get(g, nothing) for g in range(len(mine))])).to(mine.dtype)
        for epoch in epochs:
            losses = []
            for group, item in epoch:
                optimizer.zero_grad()
                loss = mse_loss(self(group, item), wanted[group, item])
                loss.backward()
                kept = mine.detach().clone()
                optimizer.step()
                mine.data = torch.where(alone > 0, mine.data, kept)  # weight decay, too, is for groups with members
                losses.append(loss.item())
        return np.mean(losses)


def epochs_of(groups, n_items, s, key):
    """The tuples of each step of each epoch: some items, as the package draws them, with all groups."""
    rng = seeding.generator(key)
    for _ in range(s.fit_epochs):
        size = s.fit_batch if 0 < s.fit_batch < n_items else n_items
        order = rng.permutation(n_items) if size < n_items else np.arange(n_items)
        parts = np.array_split(order, -(-n_items // size))
        yield [torch.tensor(list(product(groups, part))).T for part in parts]


def content_of(features, s):
    """Feature -> (which items have it, its numbers), along its widest axes if there are more than asked for."""
    found = {}
    for m in s.features or sorted(features.tables):
        there, x = Operators.normalised(features.tables[m], features.present[m])
        if 0 < s.content_dim < x.shape[1]:
            axes = torch.linalg.svd(x, full_matrices=False)[2][: s.content_dim]
            x = x @ (axes * torch.sign(axes.gather(1, axes.abs().argmax(dim=1, keepdim=True)))).T
            x = x / x.square().mean().sqrt()
        found[m] = there, torch.zeros(len(there), x.shape[1], dtype=x.dtype).index_put((torch.where(there)[0],), x)
    return found


def standardised(x):
    """Mean 0 and variance 1 by column; 0 where all are the same."""
    apart = np.ptp(x, axis=0) > 0
    return np.where(apart, (x - x.mean(axis=0)) / np.where(apart, x.std(axis=0), 1.0), 0.0)


def embedded(x, groups):
    """Leading eigenvectors v of D^-1 A, v D v = 1, A = exp(-|a - b|^2 / (2 m^2)), m the median distance."""
    apart = np.array([[np.linalg.norm(a - b) for b in x] for a in x])
    near = np.exp(-(apart**2) / (2 * np.median(apart[apart > 0]) ** 2))
    degree = near.sum(axis=1)
    values, vectors = np.linalg.eig(near / degree[:, None])
    leading = vectors.real[:, np.argsort(-values.real)[:groups]]
    return leading / np.sqrt(degree @ leading**2)


def clustered(x, groups, how, key):
    """Any names."""
    from sklearn.cluster import KMeans

    if groups == 1:
        return np.zeros(len(x), int)
    x = embedded(x, groups) if how in ("auto", "spectral") else x
    with threadpool_limits(1):
        return KMeans(groups, n_init=10, random_state=int(key) % 2**32).fit_predict(x)


def named(labels, client, before, groups):
    """Of all ways to name the groups the one in which most clients stay: before[client] is where they were. A group
    that keeps nobody has the smallest name left, in order of the smallest client in each."""
    by_client = [labels[i] for i in np.argsort(client)]
    found = sorted(set(by_client), key=by_client.index)
    where = {k: [before.get(c) for c, own in zip(client, labels) if own == k] for k in found}
    stay = {(k, g): was.count(g) for k, was in where.items() for g in range(groups)}
    ways = [list(zip(found, way)) for way in permutations(range(groups), len(found))]
    most = max(sum(stay[pair] for pair in way) for way in ways)
    best = {tuple(p for p in way if stay[p]) for way in ways if sum(stay[pair] for pair in way) == most}
    if len(best) > 1:
        raise UnclearGroupsError(f"as many clients stay with {best}")
    name = dict(best.pop())
    left = [g for g in range(groups) if g not in name.values()]
    name |= dict(zip([k for k in found if k not in name], left))
    return np.array([name[k] for k in labels])


def alike(a, b):
    """The same clients together."""
    return len(set(zip(a, b))) == len(set(a)) == len(set(b))


class Grouped(Federation):
    """group: client -> its group; preference [G, M]; labels: of the clients of each round, as dictionaries."""

    def __init__(self, host, features):
        super().__init__(host, features)
        self.gfmfr = s = self.config.plugins["gfmfr"]
        self.kind = type("Guided", (Guided, self.kind), {})
        for own in self.client:
            own.pop(RATIO, None)
        self.ratio = np.full(len(self.client), np.nan)
        self.group, self.preference = {}, np.full((s.groups, host.data.n_items), 0.5, np.float32)
        sizes = s.groups, s.group_dim, self.table(0).shape[1], s.content_dim
        start = GroupFusion(s.fusion, features, s.features, *sizes, s.gain).init(host.config.seed)
        self.network, self.labels, self.fitted = Network(start, s.fusion, content_of(features, s)), [], []

    def model(self, c, round_):
        model, s = super().model(c, round_), self.gfmfr
        progress = np.pi * round_ / (2 * self.config.train.rounds)
        model.q = self.preference[self.group[c]] if c in self.group else None
        model.lam = s.weight * (np.cos(progress) if s.schedule == "cosine" else 1.0)
        model.ratio, model.memory = self.ratio[c : c + 1], s.ratio_decay if s.ratio == "client" else None
        return model

    def serve(self, who, n_samples):
        self.regroup(who, len(self.loss))
        super().serve(who, n_samples)

    def regroup(self, who, round_):
        """Groups of the clients that trained, and what their group prefers."""
        s, seed, ids = self.gfmfr, self.config.seed, self.host.data.client[who]
        labels = self.labels_of(who, ids, round_)
        members = {g: [c for c, own in zip(who, labels) if own == g] for g in sorted(set(labels))}
        self.group |= dict(zip(who, labels))
        self.labels.append(dict(self.group))
        tables = {g: np.mean([self.table(c).astype(np.float64) for c in own], axis=0) for g, own in members.items()}
        n_items, key = self.host.data.n_items, seeding.key(seed, "fusion", round_)
        self.fitted.append(self.network.fit(tables, s, epochs_of(list(members), n_items, s, key)))
        for g, own in members.items():
            q = self.network(torch.full((n_items,), g), torch.arange(n_items)).detach().numpy()
            p = 1 / (1 + np.exp(-self.taught(own, q)))
            self.preference[g] = np.clip(p, 1e-7, 1 - 1.2e-7)

    def labels_of(self, who, ids, round_):
        s, seed = self.gfmfr, self.config.seed
        if s.grouping == "random":
            return (seeding.keys(seed, "grouping", 0, ids) % np.uint64(s.groups)).astype(int)
        x = np.array([np.concatenate([self.client[c][k].ravel() for k in self.vector()]) for c in who]).astype(float)
        if s.sketch:
            drawn = seeding.generator(seeding.key(seed, "sketch")).standard_normal((s.sketch, x.shape[1]))
            x = x @ drawn.T / np.sqrt(s.sketch)
        x, key = standardised(x), seeding.key(seed, "grouping", round_)
        labels, rng = clustered(x, s.groups, s.grouping, key), np.random.default_rng(0)
        for noise in MARGIN * rng.standard_normal((3, *x.shape)):
            if not alike(labels, clustered(x + noise, s.groups, s.grouping, key)):
                raise UnclearGroupsError(f"round {round_}: noise of {MARGIN} on the vectors changes the groups")
        return named(labels, who, self.group, s.groups)

    def vector(self):
        """The score function's parameters, less the user's own vector."""
        own = {**self.client[0], **self.server}
        return [k for k in own if not is_table(k) and k != USER and not k.startswith((ROUTER, STEP))]

    def table(self, c):
        """The item rows that client c's score function reads, less what is private of them."""
        return self.client[c].get(TABLE, self.server[TABLE])

    def taught(self, members, q):
        """Logits of all items by the members' mean score function on the rows q."""
        mean = {k: np.mean([self.client[c][k].astype(float) for c in members], axis=0) for k in self.reads()}
        if self.gfmfr.teacher == "head":
            weight = mean["output_weight"] if "output_weight" in mean else mean["head_weight"]
            bias = mean["output_bias"] if "output_bias" in mean else mean["head_bias"]
            return q @ weight + bias
        own = {PERSONAL: np.zeros_like(q)} if PERSONAL in self.client[0] else {}
        model = KINDS[self.config.backbone.name]({**mean, **own, TABLE: q}, self.config.backbone)
        return model(torch.arange(len(q))).detach().numpy()

    def reads(self):
        """The whole score function."""
        return [*self.vector(), *([USER] if USER in self.client[0] else [])]


class GroupedFused(Grouped, Fused):
    """Over `fedvlr`: a client's item rows are the mean of its views (and D, where it stands beside them)."""

    def table(self, c):
        if not self.loss:
            return self.server[TABLE]
        views = [self.trained(c, k) for k in self.sent]
        return np.mean(views, axis=0) + (self.client[c][TABLE] if self.added else 0.0)

    def trained(self, c, view):
        """A view as client c would have it, had it taken its steps."""
        return self.sent[view] + self.client[c][STEP + view] if self.kind.fixed else self.client[c][view]


def grouped(host, features):
    """The naive loop of a host, before any round."""
    return (GroupedFused if "fedvlr" in host.config.plugins else Grouped)(host, features)


def grouped_federation(host, features):
    """A whole run."""
    return federation(host, grouped(host, features))
