"""Ways to fuse an item's parts (its ID row, projected contents) into one row: one module a view, named as in the YAML.

A module holds

    init(rng, parts, dim) -> its parameters        parts: the parts' names, `id` first
    fuse(params, x, there) -> [M, dim]             x[part] [M, dim], 0 where the item has no such part; there[part] [M]

and, where most of the work does not depend on the ID row,

    across(params, groups, x, there) -> [G, M, dim]    groups [G, dim] in the place of the ID row, each with every item

A missing part changes nothing: a view of an item without text is that of its other parts alone.
"""

from collections.abc import Sequence

import numpy as np

from fedray.types import Arrays


def linear(rng: np.random.Generator, name: str, n_in: int, n_out: int) -> Arrays:
    """Xavier-normal weight [n_out, n_in], zero bias."""
    weight = rng.standard_normal((n_out, n_in)) * np.sqrt(2.0 / (n_in + n_out))
    return {f"{name}_weight": weight.astype(np.float32), f"{name}_bias": np.zeros(n_out, np.float32)}


def content(parts: Sequence[str]) -> list[str]:
    """All parts but the ID row."""
    return [part for part in parts if part != "id"]
