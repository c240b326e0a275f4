"""The shape of the package: imports point down, no cycles, no catch-all modules, no giant files."""

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import mstore

PACKAGE = Path(mstore.__file__).parent
MAX_LINES = 420

# Lowest first. A name stands for the module, or for the package with all in it. `mstore` itself is
# the package's __init__, which imports what it offers only when asked.
LAYERS: list[set[str]] = [
    {
        "canonical",
        "checks",
        "distinct",
        "errors",
        "ids",
        "dtypes",
        "layout",
        "names",
        "settings",
        "strictjson",
        "numpy_dtypes",
        "tensorfields",
        "threads",
        "version",
    },
    {"storage", "formats", "codecs", "chunking"},
    {"pack", "index", "objects", "root", "rootlog"},
    {"bulkindex", "readplan", "database", "sketches"},
    {
        "sharedmemory",
        "sources",
        "chunkreader",
        "filebytes",
        "recoding",
        "sweeps",
        "viewreader",
        "chunkstore",
        "bases",
        "basefinder",
        "relatives",
        "similar",
        "chunkencoder",
        "encoder_client",
        "encoder_process",
        "encoders",
        "ingest",
        "carriers",
        "arrayfile",
        "structure",
        "structure_read",
        "structure_write",
        "foreign_arrays",
    },
    {"ops"},
    {
        "head",
        "statcache",
        "tensors",
        "viewed",
        "snapshot",
        "worktree_read",
        "worktree",
        "worktree_write",
        "progress",
        "author",
        "repository",
    },
    {"testing", "cli", "server", "integrations", "__init__", "__main__"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
ISOLATED = LAYERS[1]

# Packages whose heavy or optional dependencies may be imported inside functions.
LAZY = {"cli", "formats", "integrations", "server"}

# What runs in a process that does not import mstore; only there are imports relative.
WITHOUT_MSTORE = {
    *("formats.hdf5_worker", "formats.hdf5_chunks", "formats.hdf5_links", "formats.hdf5_refusal"),
}

CATCH_ALL = {"utils", "util", "helpers", "helper", "common", "misc"}

# What `mstore log` and `mstore status` run: must start without numpy.
FAST = [
    "database",
    "root",
    "rootlog",
    "index",
    "objects",
    "pack",
    "ops.history",
    "ops.where",
    "ops.revisions",
    "worktree_read",
]


def modules() -> dict[str, Path]:
    """Dotted name below the package -> file; a package's __init__ goes by the package's name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = list(path.relative_to(PACKAGE).with_suffix("").parts)
        if len(parts) > 1 and parts[-1] == "__init__":
            parts.pop()
        found[".".join(parts)] = path
    return found


def parsed(name: str, path: Path) -> ast.Module:
    """The module; what it imports from beside itself is named in full."""
    tree = ast.parse(path.read_text("utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 1 and name in WITHOUT_MSTORE:
            node.module, node.level = f"mstore.{name.rpartition('.')[0]}.{node.module}", 0
    return tree


MODULES = modules()
TREES = {name: parsed(name, path) for name, path in MODULES.items()}


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def run_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Every node that can run: all but the body of `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(node):
        if not is_type_checking(child):
            yield child
            yield from run_nodes(child)


def imported(tree: ast.AST) -> set[str]:
    """Dotted names below the package that a module imports."""
    return {name.removeprefix("mstore.") for name in absolute(tree) if name.startswith("mstore.")}


def absolute(tree: ast.AST) -> Iterator[str]:
    for node in run_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                is_module = full.removeprefix("mstore.") in MODULES
                yield full if full.startswith("mstore.") and is_module else str(node.module)


def top(name: str) -> str:
    return name.partition(".")[0]


def upward(graph: Mapping[str, set[str]]) -> list[str]:
    """Imports that point up, or from one of the isolated packages to another."""
    wrong = []
    for name, targets in graph.items():
        for target in targets:
            up = LEVEL[top(target)] > LEVEL[top(name)]
            across = {top(name), top(target)} <= ISOLATED and top(name) != top(target)
            if up or across:
                wrong.append(f"{name} imports {target}")
    return sorted(wrong)


def cycle(graph: Mapping[str, set[str]]) -> list[str]:
    """One cycle of imports, or an empty list."""
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        for target in sorted(graph.get(name, ())):
            if found := visit(target, [*path, name]):
                return found
        done.add(name)
        return []

    return next((found for name in sorted(graph) if (found := visit(name, []))), [])


def nested_imports(tree: ast.Module) -> list[int]:
    """The lines of imports inside functions and classes."""
    return [
        node.lineno
        for scope in ast.walk(tree)
        if isinstance(scope, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef)
        for node in ast.walk(scope)
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]


GRAPH = {name: imported(tree) for name, tree in TREES.items()}


def test_every_module_has_a_layer():
    assert {top(name) for name in MODULES} - LEVEL.keys() == set()


def test_imports_point_down():
    assert upward(GRAPH) == []


def test_no_import_cycles():
    assert cycle(GRAPH) == []


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_stand_at_the_top(name):
    if top(name) not in LAZY:
        assert nested_imports(TREES[name]) == []


def test_no_catch_all_modules():
    assert [name for name in MODULES if CATCH_ALL & set(name.split("."))] == []


def test_no_giant_files():
    sizes = {name: len(path.read_text("utf-8").splitlines()) for name, path in MODULES.items()}
    assert {name: size for name, size in sizes.items() if size > MAX_LINES} == {}


@pytest.mark.parametrize("name", sorted(WITHOUT_MSTORE))
def test_what_runs_without_mstore_imports_nothing_of_it(name):
    assert GRAPH[name] <= WITHOUT_MSTORE


@pytest.mark.parametrize("name", FAST)
def test_the_fast_path_does_not_name_numpy(name):
    """By the source: nothing that runs on import reaches numpy or what imports it."""
    waiting, seen = [name], set()
    while waiting:
        if (at := waiting.pop()) in seen:
            continue
        seen.add(at)
        heavy = {found for found in absolute(TREES[at]) if top(found) in ("numpy", "rich")}
        assert heavy == set(), f"{name} reaches {at}, which imports {heavy}"
        waiting.extend(GRAPH[at] & MODULES.keys())


def test_the_fast_path_does_not_load_numpy():
    """By running it: other packages that import numpy would show here."""
    names = ", ".join(f"mstore.{name}" for name in FAST)
    code = f"import sys, {names}; sys.exit(' '.join({{'numpy', 'rich'}} & sys.modules.keys()) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


class TestTheChecksThemselves:
    """Each check sees what it looks for."""

    def test_upward(self):
        assert upward({"codecs.base": {"ops.gc"}}) == ["codecs.base imports ops.gc"]
        assert upward({"storage.local": {"formats.npy"}}) == ["storage.local imports formats.npy"]
        assert upward({"ops.gc": {"codecs.base", "ops.marks"}}) == []

    def test_cycle(self):
        assert cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
        assert cycle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []

    def test_nested(self):
        assert nested_imports(ast.parse("def f():\n    if 1:\n        import os")) == [3]
        assert nested_imports(ast.parse("import os\ndef f(): pass")) == []

    def test_imports(self):
        tree = ast.parse(
            "import mstore.pack\nfrom mstore import objects\nfrom mstore.storage.base import Storage\n"
            "if TYPE_CHECKING:\n    import mstore.repository\ndef f():\n    import mstore.index"
        )
        assert imported(tree) == {"pack", "objects", "storage.base", "index"}
