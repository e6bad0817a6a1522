"""YAML as a configuration wants it: safe, and without YAML 1.1's traps."""

import copy
import re
from collections.abc import Mapping
from typing import Any

import yaml

from fedray.errors import ConfigFileError


class _Loader(yaml.SafeLoader):
    """YAML 1.1 without its traps: 1e-3 is a number, a key given twice is an error, no aliases."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not allowed in a configuration")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [self.construct_object(k, deep=True) for k, _ in node.value]
        for k in keys:
            if keys.count(k) > 1:
                raise yaml.YAMLError(f"key {k!r} is given twice{node.start_mark}")
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*)(\.[\d_]*)?[eE][-+]?\d+$"),
    list("-+0123456789"),
)


def read_yaml(text: str, where: str) -> Any:
    """Safe YAML; `ConfigFileError` says line and column."""
    try:
        return yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        raise ConfigFileError(f"not valid YAML: {error}", "one YAML mapping", "", where) from error


def laid(raw: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """A job with dotted settings laid over it; both stay as they are."""
    out = copy.deepcopy(dict(raw))
    for key, value in settings.items():
        *parents, last = key.split(".")
        node = out
        for parent in parents:
            if not isinstance(node.get(parent), dict):
                node[parent] = {}
            node = node[parent]
        node[last] = copy.deepcopy(value)
    return out
