"""fedray: federated multimodal recommendation on Ray, tracked in MLflow."""

import os

# MKL picks its code by how an array happens to be aligned, and so gives other last bits for the same numbers at
# another place; in this mode it does not. Read at MKL's first use, in every process that imports fedray.
os.environ.setdefault("MKL_CBWR", "AUTO")

__version__ = "0.1.0"
