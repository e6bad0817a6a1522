"""The Dockerfile: Ray and MLflow of the versions in constraints.txt, everything else under those constraints."""

import re

import pytest

from tests.cluster.files import DOCKERFILE, IMAGE, MLFLOW_IMAGE, PINS, ROOT

TEXT = DOCKERFILE.read_text(encoding="utf-8")
PYTHON = "3.11"


def check(text: str) -> None:
    """Base images, what is copied, what is installed, and the tags that its first lines tell to build."""
    bases = dict(re.findall(r"^FROM (\S+) AS (\w+)", text, re.M))
    ray, python = bases
    assert ray == f"rayproject/ray:{PINS['ray']}-py{PYTHON.replace('.', '')}"
    assert re.fullmatch(rf"python:{re.escape(PYTHON)}\.\d+-slim-\w+", python)
    installs = re.findall(r"pip install (.*)", text)
    assert len(installs) == 2 and all("-c constraints.txt" in i or "-c /tmp/constraints.txt" in i for i in installs)
    check_versions(text)
    assert {"-t " + IMAGE, "-t " + MLFLOW_IMAGE} <= set(re.findall(r"-t \S+", text))
    assert text.rindex("USER root") < text.index("USER ray") and "USER mlflow" in text


def check_versions(text: str) -> None:
    """Every `name==version` is whole, and what constraints.txt knows is as there."""
    named = dict(re.findall(r"([\w-]+)==([\d.]+)", text))
    assert named.keys() == {"mlflow", "psycopg2-binary", "boto3"}
    assert all(PINS.get(name, version) == version for name, version in named.items())


def test_it_keeps_the_rules() -> None:
    check(TEXT)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("ray:2.60.0-py311 AS", "ray:2.59.0-py311 AS"),
        ("ray:2.60.0-py311 AS", "ray:2.60.0-py312 AS"),
        ("python:3.11.14-slim", "python:3-slim"),
        ("install --no-cache-dir -c constraints.txt .", "install --no-cache-dir ."),
        ("mlflow==3.17.2", "mlflow==3.16.0"),
        ("boto3==1.44.5", "boto3"),
        ("fedray:0.1.0-ray2.60.0", "fedray:latest"),
        ("USER mlflow", ""),
    ],
)
def test_faults_are_caught(text: str, fault: str) -> None:
    assert text in TEXT
    with pytest.raises(AssertionError):
        check(TEXT.replace(text, fault))


def test_what_it_copies_is_there() -> None:
    copied = [w for line in re.findall(r"^COPY (.*)", TEXT, re.M) for w in line.split()[:-1] if not w.startswith("--")]
    assert copied and not [w for w in copied if not (ROOT / w).exists()]
