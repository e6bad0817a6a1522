"""The data folders of FedVLR (FedMR) and GFMFR: KU, Dance, Food, Movie, Beauty, Tools_and_Home, ...

FedVLR: "Federated Vision-Language-Recommendation with Personalized Fusion", AAAI 2026, arXiv:2410.08478,
github.com/mtics/FedVLR; its first versions are called FedMR. GFMFR: "Multimodal-enhanced Federated
Recommendation: A Group-wise Fusion Approach", WWW 2026, arXiv:2509.19955, github.com/Zhangwp2420/GFMFR.

    inter.csv                 userID, itemID, rating, timestamp, split_label (0 train, 1 valid, 2 test);
                              GFMFR writes userId, itemId, rating, timestamp and no labels
    <modality>_features.npy   optional: image, text and any other, [items, d], float16 or float32; row = item id
    i_id_mapping.csv          optional: asin, itemID; the items' column original_id

`similarity.npy`, `user_graph_dict.npy` (a pickle) and `u_id_mapping.csv` are not read. The split is the
file's own unless `data.split: leave_one_out` is set, as GFMFR's files need it; that is the rank of GFMFR's
loader too. FedVLR's splitter wrote some rows into two parts (5 of KU): of a pair given again the latest
stays, of equal times the first, and `duplicates_dropped` counts the others.
"""

from typing import Literal

from pydantic import Field

from fedray.config import DataConfig
from fedray.data.paths import resolve
from fedray.data.sources import RawData
from fedray.data.sources._benchmarks import read_features, read_interactions, read_original_ids
from fedray.errors import MissingPathError


class Config(DataConfig):
    """Settings of the `fedvlr` source."""

    source: Literal["fedvlr"] = "fedvlr"
    path: str = Field(min_length=1, description="the folder of inter.csv")
    split: Literal["leave_one_out", "given"] = Field(
        "given", description="the file's split_label; or last item to test, second last to validation"
    )


def load(config: Config) -> RawData:
    """Interactions, features and original ids, unjudged. Raises the path and file errors of `fedray.errors`."""
    folder = resolve(config.path)
    file = folder / "inter.csv"
    if not file.is_file():
        mend = "Set data.path to the folder of one data set, or use data.source: folder for data of your own."
        raise MissingPathError(f"{folder} holds no inter.csv", "FedVLR's or GFMFR's files", mend)
    return RawData(
        frame=read_interactions(file, ",", "split_label", config),
        items=read_original_ids(folder / "i_id_mapping.csv"),
        features=read_features(folder, "_features.npy"),
        name=config.name or folder.resolve().name,
        where=str(file),
    )
