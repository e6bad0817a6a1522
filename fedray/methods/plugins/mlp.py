"""The "+ MLP" rows of the FedVLR tables: one view, a two-layer perceptron of ID row and contents, and no router."""

from pydantic import Field

from fedray.config import Closed
from fedray.federated.method import Method
from fedray.methods.context import Context
from fedray.methods.plugins import fedvlr
from fedray.models.projection import Start


class Config(Closed):
    """Settings of the plug-in; see `fedvlr`."""

    features: tuple[str, ...] = Field((), description="of the items; empty: all there are")
    operator_lr: float = Field(1.0, ge=0, description="of projections and perceptron, on the server")
    rows: fedvlr.Rows = Field("fixed", description="on a client: fixed for a round, or moving with each step")
    residual: bool = Field(True, description="added to the ID row, and quiet at the start")
    projection: Start = Field("principal", description="start of the projections: along the content's axes, or random")
    gain: float = Field(0.1, ge=0, description="times the projections' start")


def wrap(inner: Method, config: Config, context: Context) -> Method:
    """`inner` on item rows that a perceptron makes."""
    alike = fedvlr.Config(views=("mlp",), **config.model_dump())
    return fedvlr.wrap(inner, alike, context)._replace(name=f"mlp({inner.name})")
