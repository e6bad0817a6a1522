"""FedMR, the first release of FedVLR (arXiv 2410.08478): the same views and router, softmax taken twice, operators
moved by Adam on the mean gradient.

Departures: those of `fedvlr`; and real image features, where that release hands its models zeros by oversight.
"""

from fedray.federated.method import Method
from fedray.methods.context import Context
from fedray.methods.plugins import fedvlr


class Config(fedvlr.Config):
    """Settings of the plug-in; two softmaxes keep each of three weights within 0.21 and 0.58."""

    softmax: fedvlr.Softmax = "double"


def wrap(inner: Method, config: Config, context: Context) -> Method:
    """`inner` on fused item rows."""
    return fedvlr.wrap(inner, config, context)._replace(name=f"fedmr({inner.name})")
