"""The data folders of MMRec (github.com/enoche/MMRec): baby, sports, clothing, elec, microlens, ...

    <name>.inter              tab-separated: userID, itemID, rating, timestamp, x_label (0 train, 1 valid,
                              2 test); RecBole's typed header (user_id:token ...) is read too
    <modality>_feat.npy       optional: image, text and any other, [items, d]; row = item id
    i_id_mapping.csv          optional, tab-separated: asin, itemID; the items' column original_id

`user_graph_dict.npy` (a pickle) and `u_id_mapping.csv` are not read. The split is the file's own unless
`data.split: leave_one_out` is set, as files without labels need it. MMRec leaves users without a training
row out of validation and test; here they stay.
"""

from pathlib import Path
from typing import Literal

from pydantic import Field

from fedray.config import DataConfig
from fedray.data.paths import resolve
from fedray.data.sources import RawData
from fedray.data.sources._benchmarks import read_features, read_interactions, read_original_ids
from fedray.errors import FileFormatError, MissingPathError


class Config(DataConfig):
    """Settings of the `mmrec` source."""

    source: Literal["mmrec"] = "mmrec"
    path: str = Field(min_length=1, description="the folder of the .inter file")
    split: Literal["leave_one_out", "given"] = Field(
        "given", description="the file's x_label; or last item to test, second last to validation"
    )


def load(config: Config) -> RawData:
    """Interactions, features and original ids, unjudged. Raises the path and file errors of `fedray.errors`."""
    folder = resolve(config.path)
    file = _inter(folder)
    return RawData(
        frame=read_interactions(file, "\t", "x_label", config),
        items=read_original_ids(folder / "i_id_mapping.csv"),
        features=read_features(folder, "_feat.npy"),
        name=config.name or file.stem,
        where=str(file),
    )


def _inter(folder: Path) -> Path:
    """The one .inter file; two are refused, since neither can be preferred."""
    files = sorted(folder.glob("[!.]*.inter"))
    if not files:
        mend = "Set data.path to the folder of one data set, or use data.source: folder for data of your own."
        raise MissingPathError(f"{folder} holds no .inter file", "MMRec's files", mend)
    if len(files) > 1:
        found = f"{' and '.join(f.name for f in files)} are both there"
        raise FileFormatError(found, "one .inter file", "Remove one.", str(folder))
    return files[0]
