"""The layers hold: imports point down, siblings do not meet, heavy libraries have one place, files stay small."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = [
    {"types", "storage", "errors"},
    {"images"},
    {"models", "data", "retrieval"},
    {"objectives", "evaluation", "pivot"},
    {"training"},
    {"verbs"},
    {"cli"},
]
LEVEL = {package: level for level, packages in enumerate(LAYERS) for package in packages}
HOMES = {
    "pytorch_lightning": {"training", "cli"},
    "lightning": set(),
    "webdataset": {"data"},
    "faiss": {"retrieval"},
    "fastapi": {"retrieval"},
    "uvicorn": {"retrieval"},
    "ray": {"retrieval"},
}
FILES = [path for folder in ("cclm", "data_recipes") for path in sorted((ROOT / folder).rglob("*.py"))]
FILE_LINES, FUNCTION_LINES, PARAMETERS = 400, 60, 8


def identity(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def package_of(path: Path) -> str:
    return path.relative_to(ROOT / "cclm").parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[str]:
    """Dotted names of everything a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; name it from the top"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=identity)
def test_imports_point_down_and_siblings_do_not_meet(path: Path) -> None:
    recipe = path.is_relative_to(ROOT / "data_recipes")
    own = "data" if recipe else package_of(path)
    if own == "__init__":
        return  # the lazy public names
    assert own in LEVEL, f"{own} has no layer: give it one in this test and in the design"
    for name in imports(path):
        parts = name.split(".")
        if parts[0] in HOMES:
            assert own in HOMES[parts[0]], (
                f"{identity(path)} imports {name}; its place is {HOMES[parts[0]] or 'nowhere'}"
            )
        if parts[0] == "data_recipes":
            assert own == "cli", f"{identity(path)} imports {name}: recipes are found by name"
        if parts[0] == "cclm" and len(parts) > 1 and parts[1] != own:
            assert LEVEL.get(parts[1], len(LAYERS)) < LEVEL[own], f"{identity(path)} imports {name}, not below {own}"


def test_import_is_light() -> None:
    program = "import sys, cclm; print(*(name for name in sys.modules if '.' not in name))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = set(done.stdout.split())
    assert "cclm" in loaded
    assert not loaded & {"torch", "transformers", "pytorch_lightning", "lightning", "webdataset", "faiss", "ray"}


@pytest.mark.parametrize("path", FILES, ids=identity)
def test_files_and_functions_are_small(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source)
    if source.strip():
        assert ast.get_docstring(tree), f"{identity(path)} has no module docstring"
    assert source.count("\n") <= FILE_LINES
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            where = f"{identity(path)}:{node.lineno} {node.name}"
            parameters = [a for a in node.args.args + node.args.kwonlyargs if a.arg not in ("self", "cls", "ctx")]
            assert (node.end_lineno or 0) - node.lineno + 1 <= FUNCTION_LINES, f"{where} is too long"
            assert len(parameters) <= PARAMETERS, f"{where} has {len(parameters)} parameters: look for the missing type"
            assert all(a.annotation for a in parameters), f"{where} lacks an annotation"
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print":
            assert path.name == "cli.py" or "verbs" in path.parts, f"{identity(path)}:{node.lineno} prints: use logging"


def test_every_recipe_says_where_its_data_comes_from() -> None:
    recipes = [path for path in FILES if path.parent.name == "data_recipes" and path.name != "__init__.py"]
    assert len(recipes) >= 6
    for path in recipes:
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        assert all(word in text for word in ("Source:", "icence", "ize")), (
            f"{identity(path)} lacks source, licence or size"
        )
