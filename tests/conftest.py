"""What every test folder may use: the real data sets, where they are at hand."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

# Before any Ray starts in this process: the first start decides its authentication for good, and a bare start would
# write a token into the user's home.
os.environ.update({"RAY_AUTH_MODE": "disabled", "RAY_worker_niceness": "0", "RAY_USAGE_STATS_ENABLED": "0"})

NEIGHBOUR = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def real_data() -> Callable[[str], Path]:
    """`real_data("ku")` is the folder of that set in FEDRAY_DATA or ../shared/data; else the test is skipped."""

    def find(name: str) -> Path:
        places = [Path(p) / name for p in (os.environ.get("FEDRAY_DATA"), NEIGHBOUR) if p]
        there = [p for p in places if p.is_dir()]
        if not there:
            pytest.skip(f"no {name} in {' or '.join(str(p.parent) for p in places)}; set FEDRAY_DATA")
        return there[0]

    return find


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What starts Ray comes first: such files are few and long, and the last of them would leave a core idle."""
    items.sort(key=lambda item: item.path.parent.name not in ("e2e", "runtime", "search"))
