"""Laplace noise on what a client sends: the local perturbation of PFedRec (IJCAI 2023, 4.6) and of GFMFR's delta.

Every number of the uploaded tensors, those of untouched rows included, gets Laplace(0, scale) before it leaves the
client; with `clip`, the client's whole update is scaled to that L2 norm at most beforehand. The client itself goes
on with what it trained.

This is noise, not a guarantee: without clipping an update has no bounded sensitivity, and no accountant adds up
the rounds. Nothing made with it may be called differentially private.
"""

from pydantic import Field

from fedray.config import Closed
from fedray.errors import UnsupportedError
from fedray.federated.method import Method, Noise
from fedray.methods.context import Context


class Config(Closed):
    """Settings of the plug-in."""

    scale: float = Field(0.1, ge=0, description="of the Laplace noise; 0: none")
    clip: float = Field(0.0, ge=0, description="largest L2 norm of a client's update; 0: any")


def wrap(inner: Method, config: Config, context: Context) -> Method:
    """`inner` with noisy uploads."""
    if inner.grouping is not None:
        raise UnsupportedError(
            f"laplace_ldp on {inner.name}",
            "a server that sees sums: grouping shows it single clients' score functions, without noise",
            "Leave one of the two out.",
        )
    if config.clip and inner.collects:
        raise UnsupportedError(
            f"laplace_ldp with clip on {inner.name}",
            "a backbone that uploads changes, not whole tables",
            "Set clip: 0.",
        )
    if config.clip and context.train.weight_decay:
        raise UnsupportedError(
            "laplace_ldp with clip and train.weight_decay > 0",
            "one of them",
            "The decay moves every row of a client's table, touched or not, and the clip would not bound that.",
        )
    return inner._replace(name=f"laplace_ldp({inner.name})", noise=Noise(config.scale, config.clip))
