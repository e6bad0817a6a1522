"""The Dockerfile: Ray and MLflow of the versions in constraints.txt, everything else under those constraints."""

import re

import pytest

from tests.cluster.files import CLUSTER, DOCKERFILE, IMAGE, MLFLOW_IMAGE, PINS, ROOT

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
        (f"rayproject/ray:{PINS['ray']}-", "rayproject/ray:2.59.0-"),
        ("-py311 AS", "-py312 AS"),
        ("python:3.11.", "python:3.12."),
        ("install --no-cache-dir -c constraints.txt .", "install --no-cache-dir ."),
        (f"mlflow=={PINS['mlflow']}", "mlflow==3.16.0"),
        ("boto3==", "boto3>="),
        (IMAGE, "fedray:latest"),
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


def images(text: str) -> set[str]:
    """Our images with their tags, wherever they are named."""
    return set(re.findall(r"\bfedray(?:-mlflow)?:[\w.-]+", text))


def test_every_file_names_the_images_of_these_versions() -> None:
    for file in (f for f in CLUSTER.rglob("*") if f.is_file()):
        assert images(file.read_text(encoding="utf-8")) <= {IMAGE, MLFLOW_IMAGE}, file
    assert images("image: registry.example.com/fedray:0.0.1-ray2.0.0") == {"fedray:0.0.1-ray2.0.0"}
