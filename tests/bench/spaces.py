"""What the clean table compares: data sets, rows, and the settings each row's search may choose from.

Every row has the same budget, 12 random settings judged on validation alone, but FedRAP, which is touchy, 24,
and GPFedRec, whose rounds are the dearest by far, 6 (and a fifth of the rounds). What all rows may choose from is the
same; the learning rates are each method's own.
"""

from typing import Any, NamedTuple

DATA: dict[str, dict[str, Any]] = {
    "ml100k": {"source": "folder", "name": "ml100k", "path": "ml-100k"},
    "ku": {"source": "folder", "name": "ku", "path": "ku", "split": "given"},
    "amazon": {"source": "folder", "name": "amazon", "path": "amazon-video"},
}
ROUNDS = {"ml100k": 100, "ku": 100, "amazon": 60}
SLOW = {"gpfedrec": 0.2}
"""Times the rounds: its server multiplies clients x clients by clients x (items d) every round."""
EVERY = {"ml100k": 5, "ku": 5, "amazon": 10}


class Row(NamedTuple):
    """One line of the table: a backbone and at most one plug-in."""

    backbone: str
    plugin: str

    def job(self, data: str) -> str:
        """The job's name."""
        return "_".join(filter(None, (self.backbone, self.plugin, data, "clean")))


BACKBONES = ("fcf", "fedavg", "fedncf", "fedrap", "gpfedrec")
PLUGINS = {"fcf": ("", "dualper", "fedopt"), "fedavg": ("", "dualper", "fedopt"), "gpfedrec": ("",)}
ROWS = [Row(b, p) for b in BACKBONES for p in PLUGINS.get(b, ("", "dualper"))]
TRIALS = {("fedrap", ""): 24, ("gpfedrec", ""): 6}
BUDGET = 12

COMMON: dict[str, list[Any]] = {
    "train.loss": ["bce", "bpr"],
    "train.negatives": [4, 8],
    "train.private_steps": [0, 3],
    "train.private_weight_decay": [0.0, 0.003, 0.01, 0.02],
}
SERVER: dict[str, list[Any]] = {
    "plugins.fedopt.lr": [0.01, 0.02, 0.03],
    "plugins.fedopt.beta2": [0.99, 0.999],
    "plugins.fedopt.weight_decay": [0.0, 0.1, 0.3],
    "plugins.fedopt.second_moment": ["element", "row"],
    "train.batch_size": [100_000],
    "backbone.init_std": [0.03, 0.1],
}
ITEM_BIAS: dict[str, list[Any]] = {"backbone.item_bias": [False, True]}
OWN: dict[tuple[str, str], dict[str, list[Any]]] = {
    ("fcf", ""): {
        "backbone.lr": [0.1, 0.3, 1.0],
        "backbone.item_lr_scale": [10, 40, 80, 160],
        "backbone.init_std": [0.1, 1.0],
    },
    ("fcf", "dualper"): {
        "backbone.lr": [0.03, 0.1, 0.3],
        "plugins.dualper.item_lr_scale": [20, 80, 320],
        "backbone.init_std": [0.1, 1.0],
    },
    ("fcf", "fedopt"): {
        "backbone.lr": [1.0, 2.0, 5.0],
        "backbone.item_lr_scale": [0.1],
        "backbone.dim": [32, 64],
        **ITEM_BIAS,
        **SERVER,
    },
    ("fedavg", ""): {"backbone.lr": [0.3, 1.0, 3.0, 10.0, 30.0], "backbone.init_std": [0.1, 1.0]},
    ("fedavg", "dualper"): {
        "backbone.lr": [0.1, 0.3, 1.0],
        "plugins.dualper.item_lr_scale": [300, 3_000, 30_000],
        "backbone.init_std": [0.1, 1.0],
    },
    ("fedavg", "fedopt"): {"backbone.lr": [1.0, 2.0, 5.0], "backbone.dim": [32, 64], **ITEM_BIAS, **SERVER},
    ("fedncf", ""): {
        "backbone.lr": [0.05, 0.2, 0.5],
        "backbone.item_lr_scale": [1, 10, 80],
        "backbone.user_lr_scale": [1, 10, 80],
        "backbone.init_std": [0.1, 0.3],
    },
    ("fedncf", "dualper"): {
        "backbone.lr": [0.05, 0.2, 0.5],
        "plugins.dualper.item_lr_scale": [1, 10, 80],
        "backbone.user_lr_scale": [1, 10, 80],
        "backbone.init_std": [0.1, 0.3],
    },
    ("fedrap", ""): {
        "backbone.lr": [0.1, 0.3, 1.0],
        "backbone.item_lr": [300, 1000, 3000, 10_000],
        "backbone.personal_lr_scale": [0.1, 0.01, 0.001],
        "backbone.independence": [0.0, 0.01, 0.1],
        "backbone.sparsity": [0.0, 0.001, 0.01, 0.1],
        "backbone.personal_init_std": [0.0, 0.1],
        "backbone.init_std": [0.1, 1.0],
        "backbone.step_decay": [0.95, 1.0],
        "backbone.lr_decay": [0.97, 1.0],
        "train.local_epochs": [1, 2],
    },
    ("gpfedrec", ""): {
        "backbone.lr": [0.03, 0.1, 0.3],
        "backbone.item_lr_scale": [10, 30, 80],
        "backbone.user_lr_scale": [10, 80],
        "backbone.reg": [0.1, 0.5, 1.0],
        "backbone.init_std": [0.1, 0.3],
        "backbone.threshold": [1.0, 1.02],
    },
}
OWN["fedrap", "dualper"] = {**OWN["fedrap", ""], "plugins.dualper.item_lr_scale": [1, 10]}


def space(row: Row) -> dict[str, list[Any]]:
    """Dotted key -> what may be chosen."""
    return {"train.batch_size": [256], **COMMON, **OWN[row.backbone, row.plugin]}


def base(row: Row, data: str) -> dict[str, Any]:
    """The job without what the search chooses."""
    return {
        "data": DATA[data],
        "backbone": {"name": row.backbone, "dim": 32},
        "plugins": {row.plugin: {}} if row.plugin else {},
        "train": {"rounds": int(ROUNDS[data] * SLOW.get(row.backbone, 1))},
        "evaluation": {"protocol": "clean", "every": EVERY[data]},
    }
