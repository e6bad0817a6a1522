"""One local Ray for the tests of this folder: no token file in the user's home, nobody else's cluster."""

import pytest


@pytest.fixture(scope="package")
def ray_cluster(tmp_path_factory):
    """A two-CPU local cluster with its dashboard, so that Ray's own actor list can be asked."""
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=True, logging_level="ERROR", log_to_driver=False,
             namespace="fedray-tests")  # fmt: skip
    yield ray
    ray.shutdown()
