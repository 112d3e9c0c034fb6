"""Imports point one way, read off the import statements."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "sb3_reinforce"

# What each layer must not import; a layer may import those before it.
FORBIDDEN = {
    ("returns", "baselines", "bias", "score_function"): [
        "stable_baselines3", "gymnasium", "torch.distributed", "logging", "wandb", "rl_zoo3",
        "sb3_reinforce.schedules", "sb3_reinforce.buffers", "sb3_reinforce.rollout.sampling", "sb3_reinforce.reinforce",
        "sb3_reinforce.arguments", "sb3_reinforce.tracking", "sb3_reinforce.zoo", "sb3_reinforce.vec_env",
    ],
    ("schedules", "save_util", "distributed", "logs"): [
        "wandb", "rl_zoo3",
        "sb3_reinforce.returns", "sb3_reinforce.baselines", "sb3_reinforce.buffers", "sb3_reinforce.rollout.sampling",
        "sb3_reinforce.reinforce", "sb3_reinforce.tracking", "sb3_reinforce.zoo",
    ],
    (
        "arguments", "buffers", "sampling", "scores", "greedy", "natural_gradient", "reinforce", "diagnostics", "checkpoint",
        "training_state", "vec_env",
    ): [
        "wandb", "rl_zoo3", "sb3_reinforce.tracking", "sb3_reinforce.zoo",
    ],
    ("tracking",): ["rl_zoo3", "sb3_reinforce.zoo"],
    ("__init__",): ["wandb", "rl_zoo3", "sb3_reinforce.tracking", "sb3_reinforce.zoo"],
}  # fmt: skip


def imports(path: Path) -> set[str]:
    """Full names of all that a file imports while it runs."""
    found = set()
    tree = ast.parse(path.read_text())
    for_types_only = {
        id(node)
        for guard in ast.walk(tree)
        if isinstance(guard, ast.If) and isinstance(guard.test, ast.Name) and guard.test.id == "TYPE_CHECKING"
        for node in ast.walk(guard)
    }
    for node in ast.walk(tree):
        if id(node) in for_types_only:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def files(module: str) -> list[Path]:
    folder = PACKAGE / module
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [PACKAGE / f"{module}.py"]


@pytest.mark.parametrize(("module", "forbidden"), [(m, f) for modules, f in FORBIDDEN.items() for m in modules])
def test_layers(module, forbidden):
    for path in files(module):
        wrong = {name for name in imports(path) for f in forbidden if name == f or name.startswith(f + ".")}
        assert not wrong, f"{path.name} must not import {wrong}"


def test_every_module_has_a_layer():
    modules = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert modules - {"__main__", "zoo"} == {module for layer in FORBIDDEN for module in layer}


def test_imports_are_seen():
    """The reader sees what it is to forbid: reinforce.py does import Stable-Baselines3."""
    assert any(name.startswith("stable_baselines3.") for name in imports(PACKAGE / "reinforce.py"))
