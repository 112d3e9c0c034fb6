"""Imports point one way and files are short: both are read off the source."""

import ast
from fnmatch import fnmatch
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "sb3_reinforce"
MAX_LINES = 400

# A module imports from its own layer and those before it; a star stands for all files of a folder.
LAYERS = {
    "mathematics": [
        "version", "schedules", "observations", "returns", "episodes", "baselines", "losses", "score_checks",
        "sequences", "score_function", "estimators*", "tables",
    ],
    "processes": [
        "action_masks", "maskable_recurrent", "parallel",
        "arguments", "migration", "policies", "policy_checks", "running", "running.normalization", "running.ranks",
        "running.exchange", "running.callbacks", "running.files", "running.disk", "running.logs", "running.training_state",
        "running.env_queries", "running.trust", "running.checkpoint_schema", "running.claims", "running.devices",
        "running.threads",
    ],
    "checkpoints": [
        "running.checkpoint_file", "running.settings", "running.checkpoint", "running.resume", "running.resumable",
    ],
    "vector environments": ["vec_env*"],
    "rollout": ["rollout*"],
    "update": ["update*"],
    "estimator": ["scores", "episode_gradients", "estimate", "natural_gradient"],
    "episodic": ["masking", "episodic"],
    "reinforce": ["reinforce"],
    "diagnostics": ["compare", "diagnostics", "bias"],
    "public": ["__init__", "checkpoint", "logs"],
    "tracking": ["tracking*"],
    "zoo": ["zoo*", "__main__"],
}  # fmt: skip
# Libraries that a layer, and all before it, must not import
FORBIDDEN = {
    "mathematics": ["gymnasium", "wandb", "rl_zoo3", "torch.distributed", "logging"],
    "public": ["wandb", "rl_zoo3", "optuna"],
    "tracking": ["rl_zoo3"],
}
ORDER = list(LAYERS)
FILES = sorted(PACKAGE.rglob("*.py"))


def module_of(path: Path) -> str:
    """``running.ranks`` for sb3_reinforce/running/ranks.py, ``running`` for its __init__.py."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in FILES}


def layer_of(module: str) -> int:
    found = [name for name, patterns in LAYERS.items() for pattern in patterns if fnmatch(module, pattern)]
    assert len(found) == 1, f"{module} must be in one layer of LAYERS, is in {found}"
    return ORDER.index(found[0])


def imports(path: Path) -> set[str]:
    """Full names of all that a file imports: at its top, inside functions, for type checkers alone, or named in a string."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Constant) and node.value in {f"sb3_reinforce.{module}" for module in MODULES}:
            found.add(node.value)  # for importlib.import_module, as in zoo/cli.py
    return found


def imported_modules(path: Path) -> set[str]:
    """The package's own modules that a file imports."""
    found = set()
    for name in imports(path):
        if name == "sb3_reinforce" or name.startswith("sb3_reinforce."):
            inner = name.removeprefix("sb3_reinforce").removeprefix(".")
            candidates = [inner, inner.rpartition(".")[0] or "__init__"]
            found.add(next((module for module in candidates if module in MODULES), "__init__"))
    return found


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_one_way(module):
    own = layer_of(module)
    later = {other for other in imported_modules(MODULES[module]) if layer_of(other) > own}
    assert not later, f"{module} ({ORDER[own]}) must not import {later}: see LAYERS"


@pytest.mark.parametrize("layer", FORBIDDEN)
def test_libraries(layer):
    for module, path in MODULES.items():
        if layer_of(module) <= ORDER.index(layer):
            wrong = {n for n in imports(path) for f in FORBIDDEN[layer] if n == f or n.startswith(f"{f}.")}
            assert not wrong, f"{module} must not import {wrong}"


def test_no_circles():
    """Follow imports from each module; none leads back to it. Those inside functions and for type checkers count."""
    edges = {module: imported_modules(path) - {module} for module, path in MODULES.items()}

    def circle(module: str, trail: tuple[str, ...], done: set[str]) -> tuple[str, ...] | None:
        if module in trail:
            return (*trail[trail.index(module) :], module)
        if module in done:
            return None
        for other in edges.get(module, ()):
            if found := circle(other, (*trail, module), done):
                return found
        done.add(module)
        return None

    done: set[str] = set()
    for module in edges:
        found = circle(module, (), done)
        assert found is None, " -> ".join(found)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_are_short(path):
    assert len(path.read_text().splitlines()) <= MAX_LINES


def test_test_files_are_short():
    long = {path.name: n for path in Path(__file__).parent.glob("*.py") if (n := len(path.read_text().splitlines())) > 450}
    assert not long


def test_imports_are_seen(tmp_path):
    """The reader sees what it is to forbid, wherever it stands."""
    file = tmp_path / "x.py"
    file.write_text("import a\nif TYPE_CHECKING:\n    from b import c\ndef f():\n    from d.e import g\n")
    assert imports(file) == {"a", "b.c", "d.e.g"}
    assert "episodic" in imported_modules(PACKAGE / "reinforce.py")
    assert "zoo.train" in imported_modules(PACKAGE / "zoo" / "cli.py")  # as a string
