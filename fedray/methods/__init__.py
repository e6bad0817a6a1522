"""Methods: `backbones/<name>.py` make one, `plugins/<name>.py` wrap one. The name in the YAML is the module's name."""

from fedray.config import RunConfig, part_module
from fedray.federated.local_training import check_optimizer
from fedray.federated.method import Method
from fedray.methods.context import Context
from fedray.types import ItemFeatures


def build(config: RunConfig, n_items: int, features: ItemFeatures | None = None) -> Method:
    """The backbone with its plug-ins round it, first named innermost. Built anew in each process, never pickled."""
    check_optimizer(config.train)
    context = Context(n_items, config.train, features)
    method: Method = part_module("methods.backbones", config.backbone.name).make(config.backbone, context)
    for name, settings in config.plugins.items():
        method = part_module("methods.plugins", name).wrap(method, settings, context)
    return method
