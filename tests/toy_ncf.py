"""A method no backbone here has yet: shared dense layers, a private user vector, tuned rows; no linear head. It drives
the general paths (dense uploads, vmapped training and scoring) that FCF does not."""

import numpy as np
import torch

from fedray import seeding
from fedray.federated.aggregate import weighted_mean
from fedray.federated.method import Method
from fedray.models.losses import bce


def toy_ncf(n_items, dim=6):
    def init_server(seed):
        rng = seeding.generator(seeding.key(seed, "init_server"))
        shapes = {"item_embedding": (n_items, dim), "w1": (2 * dim, dim), "w2": (dim,)}
        return {k: rng.standard_normal(s, dtype=np.float32) * np.float32(0.5) for k, s in shapes.items()}

    def init_clients(seed, clients):
        keys = seeding.keys(seed, "init_client", 0, clients)
        return {"user": np.stack([seeding.generator(k).standard_normal(dim, dtype=np.float32) for k in keys])}

    def score(params):
        z = params["item_embedding"]
        x = torch.cat([params["user"].expand(z.shape[0], dim), z], dim=1)
        return torch.relu(x @ params["w1"]) @ params["w2"]

    def local_loss(params, batch):
        return bce(score({**params, "item_embedding": params["item_embedding"][batch.item]}), batch.label, batch.mask)

    rates = {"item_embedding": 2.0, "w1": 0.1, "w2": 0.1, "user": 0.1}
    return Method(
        name="toy_ncf",
        init_server=init_server,
        init_clients=init_clients,
        shared_rows=("item_embedding",),
        shared_dense=("w1", "w2"),
        private=("user",),
        local_loss=local_loss,
        phases=lambda round_: (rates,),
        weight=lambda n: (n > 0).astype(np.int64),
        server_step=weighted_mean,
        score=score,
        tuned=("item_embedding",),
    )
