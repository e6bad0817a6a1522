"""Methods: `backbones/<name>.py` make one, `plugins/<name>.py` wrap one. The name in the YAML is the module's name."""

from fedray.config import RunConfig, part_module
from fedray.federated.local import Phase
from fedray.federated.local_training import check_optimizer
from fedray.federated.method import Method
from fedray.methods.context import Context
from fedray.types import FeatureNames, ItemFeatures


def build(config: RunConfig, n_items: int, features: ItemFeatures | FeatureNames | None = None) -> Method:
    """The backbone with its plug-ins round it, first named innermost. Built anew in each process, never pickled.

    From names of features alone it is a client's: what the server makes of content is then a `ContentError`.
    """
    context = Context(n_items, config.train, features)
    method: Method = part_module("methods.backbones", config.backbone.name).make(config.backbone, context)
    for name, settings in config.plugins.items():
        method = part_module("methods.plugins", name).wrap(method, settings, context)
    check_optimizer(config.train, method)
    return with_private_steps(method, config.train.private_steps)


def with_private_steps(method: Method, n: int) -> Method:
    """Every update that moves private parameters becomes n updates of these alone, then one of its others."""
    if n == 0:
        return method

    def split(phase: Phase) -> tuple[Phase, ...]:
        own = {k: lr for k, lr in phase.items() if k in method.private}
        rest = {k: lr for k, lr in phase.items() if k not in method.private}
        return (own,) * n * bool(own) + (rest,) * bool(rest)

    return method._replace(phases=lambda round_: tuple(p for phase in method.phases(round_) for p in split(phase)))
