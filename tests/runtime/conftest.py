"""One local Ray for the tests of this folder: no token file in the user's home, nobody else's cluster."""

import os

import pytest


@pytest.fixture(scope="package")
def ray_cluster(tmp_path_factory):
    """A two-CPU local cluster with its dashboard, so that Ray's own actor list can be asked."""
    os.environ.update({"RAY_AUTH_MODE": "disabled", "RAY_worker_niceness": "0", "RAY_USAGE_STATS_ENABLED": "0"})
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=True, logging_level="ERROR", log_to_driver=False,
             namespace="fedray-tests")  # fmt: skip
    yield ray
    ray.shutdown()
