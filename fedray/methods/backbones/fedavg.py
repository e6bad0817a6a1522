"""FedAvg-MF: the model of `fcf`, aggregated as McMahan et al., 2017 (arXiv 1602.05629): clients weigh by their samples.

It differs from FCF in two things: the item table moves with the same learning rate as the head, and the mean is
weighted by the number of local samples of the round (positives and negatives). The FedVLR authors' code leaves the
weights unnormalised in places, which scales the table up every round; here they sum to 1.
"""

from typing import Literal

import numpy as np

from fedray.federated.method import Method
from fedray.methods.backbones.fcf import LinearConfig, linear_method
from fedray.methods.context import Context


class Config(LinearConfig):
    """lr is eta, for head and item table alike."""

    name: Literal["fedavg"] = "fedavg"


def make(config: Config, context: Context) -> Method:
    """FedAvg-MF over `context.n_items` items."""
    return linear_method(config, context, config.lr)._replace(weight=lambda n: n.astype(np.int64))
