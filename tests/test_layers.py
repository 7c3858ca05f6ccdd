"""Layers of the package, from its imports: lower ones never import higher ones, and there are no cycles."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "gen_jax"
LAYERS = (  # from the bottom to the top; modules of one line may import each other as long as there is no cycle
    ("errors", "files", "markdown", "pages", "compilation"),
    ("core",),
    ("sharding", "data"),
    ("models", "algorithms", "restarts", "optimizers", "checkpoint", "logs", "trackers"),
    ("loop", "hooks", "evaluation"),
    ("applications", "plots", "estimators"),
    ("experiment", "configs"),
    ("workdir", "run", "reopen", "portable", "programs", "profiling"),
    ("cli",),
)
NAMES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
    for path in PACKAGE.rglob("*.py")
}
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}


def modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
        yield name, ast.parse(path.read_text())


def imported(tree, late: bool):
    """Names of gen_jax that a module imports: at its top, or anywhere."""
    nodes = ast.walk(tree) if late else tree.body
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("gen_jax"):
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            yield from whole & NAMES or {node.module}  # modules by name, or names of a module
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("gen_jax."))


def layer(name: str) -> str:
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else ""


@pytest.mark.parametrize("name, tree", list(modules()), ids=lambda value: value if isinstance(value, str) else "")
def test_no_module_imports_a_higher_layer(name, tree):
    mine = layer(name)
    if mine in ("", "__main__"):  # the package itself offers names of all layers, when they are asked for
        return
    for other in imported(tree, late=True):
        theirs = layer(other)
        if theirs:  # not the package itself
            assert RANK[theirs] <= RANK[mine], f"{name} ({mine}) imports {other} ({theirs})"


def test_models_import_no_training():
    for name, tree in modules():
        if layer(name) == "models":
            assert not {layer(other) for other in imported(tree, late=True)} & {"algorithms", "restarts", "logs"}, name


def test_no_cycles():
    names = {name for name, _ in modules()}
    graph = {name: {other for other in imported(tree, late=False) if other in names} for name, tree in modules()}
    for name in graph:  # a face imports its modules; they do not import their face
        graph[name] -= {name}
    done, active = set(), []

    def visit(name):
        if name in active:
            raise AssertionError(" -> ".join([*active[active.index(name) :], name]))
        if name not in done:
            active.append(name)
            for other in sorted(graph[name]):
                visit(other)
            done.add(active.pop())

    for name in sorted(graph):
        visit(name)


def test_abilities_of_models_are_asked_by_protocol():
    """No hasattr, and getattr only with names that the code itself holds, on objects that are no models."""
    for path in (PACKAGE / "models", PACKAGE / "evaluation", PACKAGE / "plots", PACKAGE / "applications"):
        for file in path.rglob("*.py"):
            calls = [
                n.func.id
                for n in ast.walk(ast.parse(file.read_text()))
                if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)
            ]
            assert "hasattr" not in calls, file
