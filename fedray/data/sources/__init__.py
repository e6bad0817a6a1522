"""Where data come from: one module a source, named as in the YAML (`data.source: folder`).

A source module holds `Config` (its keys, laid over `DataConfig`) and `load(config) -> RawData`. It reads
and names what it cannot read; judging the content is `interactions.clean`'s work, the same for all.
Modules that start with an underscore are helpers and no sources.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Shaped


class RawFeature(NamedTuple):
    """One modality as found: `table[r]` belongs to item `item[r]`; `item` None: row r is item id r."""

    table: np.ndarray
    item: Shaped[np.ndarray, " rows"] | None
    where: str


@dataclass(frozen=True)
class RawData:
    """What a source found, unjudged.

    frame: user, item and, where there is any, rating, time, split; its index is the row number in the
      file, the header counted, so that an error can say "row 17".
    items: `item` and whatever describes it (title, description, image path ...); empty without such a file.
    features: modality -> its raw table. name: the data's short name. where: the interactions' file.
    """

    frame: pd.DataFrame
    items: pd.DataFrame
    name: str
    where: str
    features: Mapping[str, RawFeature] = field(default_factory=dict)
