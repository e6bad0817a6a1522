"""The shape of the source: who may import whom, and what may stand where. Read with `ast`, nothing is run."""

import ast
import re
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "fedray").rglob("*.py"))
JOBS = sorted((ROOT / "jobs").glob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))

LAYERS = [
    {"types", "errors", "seeding", "config", "sections", "yamls", "fixed_point", "storage", "changes"},
    {"data", "models", "encoders", "embeddings", "evaluation"},
    {"federated"},
    {"methods"},
    {"runtime", "tracking", "federation", "segments"},
    {"cli", "search", "job", "evaluate", "doctor", "progress", "models_io", "family", "compare", "outputs", "encode"}
    | {"submit", "status_line", "report", "ui"},
]
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}


def place(file):
    return file.relative_to(ROOT).as_posix()


@cache
def parsed(file):
    return ast.parse(file.read_text(encoding="utf-8"))


def nodes(file, *kinds):
    return [n for n in ast.walk(parsed(file)) if isinstance(n, kinds)]


def imported(file):
    """Full names of the modules a file imports, at its top or inside a function."""
    found = set()
    for node in nodes(file, ast.Import, ast.ImportFrom):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        else:
            assert node.level == 0, f"{file}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def part_of(file):
    """`data` for fedray/data/splits.py, `cli` for fedray/cli.py."""
    return file.relative_to(ROOT / "fedray").parts[0].removesuffix(".py")


def parts_imported(file):
    own = {name.split(".")[1] for name in imported(file) if name.startswith("fedray.")}
    return own - {part_of(file)}


def folders_of(package):
    return {
        f.relative_to(ROOT / "fedray").parts[0] for f in SOURCES if {package} & {n.split(".")[0] for n in imported(f)}
    }


def test_every_part_has_a_layer():
    assert {part_of(f) for f in SOURCES} - {"__init__"} <= LEVEL.keys()


def test_imports_point_down():
    inner = [f for f in SOURCES if f != ROOT / "fedray" / "__init__.py"]
    upward = [(place(f), p) for f in inner for p in parts_imported(f) if LEVEL[p] > LEVEL[part_of(f)]]
    assert not upward
    assert imported(ROOT / "fedray" / "__init__.py") == {"os"}


def test_parts_of_one_layer_do_not_import_in_a_circle():
    graph = {}
    for file in SOURCES:
        graph.setdefault(part_of(file), set()).update(parts_imported(file))
    list(TopologicalSorter(graph).static_order())


def test_ray_is_imported_by_runtime_and_search_alone():
    assert "runtime" in folders_of("ray") <= {"runtime", "search"}


def test_mlflow_is_imported_by_tracking_alone():
    assert folders_of("mlflow") == {"tracking"}


def dotted(node):
    """`np.random.rand` of an attribute chain; '' for anything else."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


RANDOM = re.compile(
    r"(np|numpy)\.random\.(?!Generator$)\w+$"
    r"|torch\.(\w*manual_seed|seed|rand\w*|normal|bernoulli|multinomial|Generator)$"
    r"|torch\.nn\.(init\.\w+_|functional\.dropout|Linear|Embedding|Dropout)$"
)


def test_randomness_comes_from_seeding_alone():
    found = set()
    for file in SOURCES + JOBS:
        modules = {
            n for n in imported(file) if n.split(".")[0] in ("random", "secrets") or n.startswith("numpy.random")
        }
        names = {dotted(n) for n in nodes(file, ast.Attribute)}
        found |= {(place(file), n) for n in modules | set(filter(RANDOM.match, names))}
    assert found == {("fedray/seeding.py", "np.random.Philox")}


def blanket(handler):
    caught = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(c is None or dotted(c) in ("Exception", "BaseException") for c in caught)


def raises_again(handler):
    last = handler.body[-1]
    return isinstance(last, ast.Raise) and last.exc is None


def test_a_blanket_except_raises_again():
    """The tracking spool is the one border where an error is kept as a value: training must not fall with it."""
    found = [(place(f), h) for f in SOURCES + JOBS for h in nodes(f, ast.ExceptHandler) if blanket(h)]
    assert {f for f, h in found if not raises_again(h)} <= {"fedray/tracking/spool.py"}


def test_nothing_is_printed():
    """Text for people goes through a console."""
    calls = [(place(f), dotted(n.func)) for f in SOURCES + JOBS for n in nodes(f, ast.Call)]
    assert not [c for c in calls if c[1] in ("print", "pprint", "sys.stdout.write")]


def test_files_have_a_docstring_and_at_most_400_lines():
    assert not [place(f) for f in SOURCES + JOBS if not ast.get_docstring(parsed(f))]
    assert not [place(f) for f in SOURCES + JOBS + TESTS if len(f.read_text(encoding="utf-8").splitlines()) > 400]


def test_no_file_names_a_place_on_somebodys_machine():
    somewhere = re.compile("|".join(f"/{top}/[a-z]" for top in ("work", "root", "home", "Users")))
    texts = [f for f in ROOT.glob("*") if f.suffix in (".toml", ".md", ".txt") or f.name == "Makefile"]
    texts += [f for d in ("jobs", "cluster", "tune_configs", ".ci") for f in (ROOT / d).rglob("*") if f.is_file()]
    texts = {f for f in texts if "__pycache__" not in f.parts} | {*SOURCES, *TESTS}
    found = [(place(f), m[0]) for f in texts for m in somewhere.finditer(f.read_text(encoding="utf-8"))]
    assert not found
