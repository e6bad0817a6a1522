"""Exact sums: values on a power-of-two grid, added as int64.

Integer addition is associative and commutative, floating-point addition is not. Every sum over clients
(updates, losses, metrics) is therefore quantised to a grid of 2^-32 per client first, so that it does
not depend on how clients are packed on actors, on their order or on retries. It is also the form that
secure aggregation needs.

A value x becomes round(x * 2^32), half to even. Resolution 2.3e-10; one client's value may be up to
2^30 in size, and `check` refuses a sum that could leave int64.
"""

import numpy as np
from jaxtyping import Float, Int, Real

from fedray.errors import AggregateOverflowError

BITS = 32
SCALE = float(1 << BITS)
LIMIT = 1 << 62


def quantise(x: Real[np.ndarray, "..."]) -> Int[np.ndarray, "..."]:
    """x on the grid, as int64. Raises `AggregateOverflowError` where |x| >= 2^30 or x is not finite."""
    scaled = np.rint(np.asarray(x, dtype=np.float64) * SCALE)
    if not np.all(np.abs(scaled) < LIMIT):
        raise overflow(float(np.max(np.abs(x))) if np.size(x) else 0.0)
    return scaled.astype(np.int64)


def restore(q: Int[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """The float64 value of grid numbers (exact up to 2^53 grid steps, then rounded once)."""
    return np.asarray(q, dtype=np.int64).astype(np.float64) / SCALE


def check(peak: int) -> int:
    """`peak` = sum over clients of their largest |grid number|; refuses what could leave int64."""
    if peak >= LIMIT:
        raise overflow(peak / SCALE)
    return peak


def overflow(size: float) -> AggregateOverflowError:
    """The error for a value or sum of the given size."""
    return AggregateOverflowError(
        f"a sum over clients could reach {size:.3g}",
        f"less than {LIMIT / SCALE:.3g} (fixed point, grid 2^-{BITS})",
        "The update has probably diverged: lower backbone.lr or the plug-ins' learning-rate scales.",
    )
