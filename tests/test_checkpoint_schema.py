"""Checkpoints with forged values and right checksums: the named error, and the folder falls back to the one before."""

import hashlib
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback, EvalCallback

from sb3_reinforce import REINFORCE, TrainingCheckpoint
from sb3_reinforce.running.checkpoint_file import CheckpointError, checkpoints_in
from tests.runs import make_env, play


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    play(folder)
    return folder / "checkpoints"


@pytest.fixture
def copied(run_folder: Path, tmp_path: Path) -> list[Path]:
    for path in checkpoints_in(run_folder):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return checkpoints_in(tmp_path)


def items(value: Any) -> Any:
    """A dict in training.json, which is a list of pairs there."""
    return dict(value["items"])


def forge(path: Path, manifest: Callable[[Any], Any] | None = None, training: Callable[[Any], Any] | None = None) -> None:
    """Change the parts, as JSON, in place, or return others; checksums are right again."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    if training is not None:
        value = json.loads(parts["training.json"])
        parts["training.json"] = json.dumps(training(value) or value).encode()
    about = json.loads(parts["manifest.json"])
    about["sha256"]["training.json"] = hashlib.sha256(parts["training.json"]).hexdigest()
    changed = about if manifest is None else manifest(about)
    parts["manifest.json"] = json.dumps(about if changed is None else changed).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, part in parts.items():
            archive.writestr(name, part)


def put(*path: str, value: Any) -> Callable[[Any], None]:
    """:return: sets a value in the nested dicts of training.json, or removes it"""

    def change(state: Any) -> None:
        for key in path[:-1]:
            state = items(state)[key]
        state["items"] = [pair for pair in state["items"] if pair[0] != path[-1]]
        if value is not MISSING:
            state["items"].append([path[-1], value])

    return change


MISSING = object()
ATTRIBUTES = ("model", "attributes")
MANIFESTS = {
    **{
        f"{name}={value!r}": {name: value}
        for name in ("algorithm", "libraries", "env", "sha256")
        for value in ([], None, 3, {})
    },
    **{f"{name}={value!r}": {name: value} for name in ("policy", "rollout_buffer", "device") for value in ([], 3, "x y", {})},
    "unknown env": {"env": {"id": 3, "colour": "red"}},
    "meta device": {"device": "meta"},
    "format": {"format": [2]},
}
TRAININGS = {
    "a list": lambda _: [1],
    "no dict": lambda _: {"is": "tuple", "items": []},
    "an unknown kind": lambda _: {"is": "x"},
    **{f"no {name}": put(name, value=MISSING) for name in ("iteration", "model", "random", "callbacks", "evaluation")},
    **{f"{name}=3": put(name, value=3) for name in ("model", "random", "callbacks", "evaluation")},
    "negative iteration": put("iteration", value=-1),
    "iteration=True": put("iteration", value=True),
    **{f"num_timesteps={value}": put(*ATTRIBUTES, "num_timesteps", value=value) for value in (-1, 1.5, None, [])},
    **{f"no {name}": put(*ATTRIBUTES, name, value=MISSING) for name in ("num_timesteps", "_n_updates", "_n_rollouts")},
    "ranks=3": put("ranks", value=3),
    "a rank=3": put("ranks", value=[3]),
    "a rank without environments": put("ranks", value=[{"is": "dict", "items": []}]),
    "settings of a rank": put("ranks", value=[{"is": "dict", "items": [["n_envs", 3], ["n_steps", -4]]}]),
    "an unknown attribute": put(*ATTRIBUTES, "colour", value=3),
    "an attribute that is no number": put(*ATTRIBUTES, "policy", value=3),
    "text for a number": put(*ATTRIBUTES, "gamma", value="x"),
    "a wrong number": put(*ATTRIBUTES, "gamma", value=7.0),
    **{f"{name} no list": put("model", name, value="x") for name in ("frozen", "ep_info_buffer", "ep_success_buffer")},
    "statistics no list": put("model", "vec_normalize", value="x"),
    "an episode without r": put("model", "ep_info_buffer", value=[{"is": "dict", "items": [["l", 3]]}]),
    "no statistics": put("model", "vec_normalize", value=[]),
    "other statistics": put(
        "model", "vec_normalize", value=[{"is": "dict", "items": [["x", {"is": "tuple", "items": [1, 1.0, 1.0]}]]}]
    ),
    "a log row": put("model", "logger", value={"is": "dict", "items": [["x", 3]]}),
    "a generator": put("random", "action_space", value={"is": "dict", "items": [["state", 3]]}),
    "python's generator": put("random", "python", value={"is": "tuple", "items": [3, [1], None]}),
    "numpy's generator": put("random", "numpy", value={"is": "tuple", "items": ["MT19937", [1], 0, 0, 0.0]}),
    "torch's generator": put("random", "torch", value=[1]),
    "an array that is not there": put("random", "torch", value={"is": "tensor", "name": "999"}),
}  # fmt: skip


@pytest.mark.parametrize("values", MANIFESTS.values(), ids=MANIFESTS)
def test_forged_manifests(copied: list[Path], values: dict[str, Any]):
    forge(copied[0], manifest=lambda about: {**about, **values})
    check_refused(copied)


@pytest.mark.parametrize("name", "algorithm sb3_reinforce libraries policy rollout_buffer device env sha256".split())
def test_manifests_that_lack_something(copied: list[Path], name: str):
    forge(copied[0], manifest=lambda about: {key: value for key, value in about.items() if key != name})
    check_refused(copied, f"manifest.json must have {name}, which is missing")


@pytest.mark.parametrize("content", [[], "x", 3, [[[]]]], ids=str)
def test_manifests_that_are_no_dict(copied: list[Path], content: Any):
    forge(copied[0], manifest=lambda about: content)
    check_refused(copied, "it has the format None")


@pytest.mark.parametrize("training", TRAININGS.values(), ids=TRAININGS)
def test_forged_training_states(copied: list[Path], training: Callable[[Any], Any]):
    forge(copied[0], training=training)
    check_refused(copied)


def test_a_forged_position_of_numpys_generator(copied: list[Path]):
    """NumPy itself takes any, and reads beyond its 624 words."""

    def move(state: Any) -> None:
        items(items(state)["random"])["numpy"]["items"][2] = 10**6

    forge(copied[0], training=move)
    check_refused(copied, "random: numpy must be a state of MT19937")


def check_refused(copied: list[Path], words: str = "") -> None:
    with pytest.raises(CheckpointError, match=f"{copied[0].name}.*{words}"):
        REINFORCE.resume(copied[0], make_env())
    with pytest.warns(UserWarning, match=f"Training resumes from .*{copied[1].name}, which is older"):
        model = REINFORCE.resume(copied[0].parent, make_env())
    assert model.num_timesteps == int(copied[1].name.split("_")[1])


# --- callbacks ---


def with_callback_state(path: Path, name: str, **values: Any) -> None:
    def change(state: Any) -> None:
        saved = items(state)["callbacks"]
        saved["items"] = [pair for pair in saved["items"] if pair[0] != name]
        saved["items"].append([name, {"is": "dict", "items": [*map(list, values.items())]}])

    forge(path, training=change)


def test_callbacks_get_state_and_no_settings(copied: list[Path], tmp_path: Path):
    settings = dict(best_model_save_path="/evil", log_path="/evil", eval_freq=1, deterministic=False)
    no_state = dict(model=3, parent=3, _on_step=3, logger=3)
    with_callback_state(copied[0], "EvalCallback0", **settings, **no_state, n_calls=7, best_mean_reward=3.5)
    with_callback_state(copied[0], "CheckpointCallback0", save_path="/evil", name_prefix="evil", n_calls=8)
    model = REINFORCE.resume(copied[0], make_env())
    evaluation = EvalCallback(make_env(seed=1), eval_freq=99, log_path=str(tmp_path / "own"), verbose=0)
    saving = CheckpointCallback(1000, str(tmp_path / "own"))
    model.learn(0, [evaluation, saving], reset_num_timesteps=False)
    assert (evaluation.best_model_save_path, evaluation.log_path) == (None, str(tmp_path / "own/evaluations"))
    assert (evaluation.eval_freq, evaluation.deterministic) == (99, True)
    assert (evaluation.model, evaluation.n_calls, evaluation.best_mean_reward) == (model, 7, 3.5)
    assert evaluation.parent != 3
    assert "_on_step" not in vars(evaluation)
    assert (saving.save_path, saving.name_prefix, saving.n_calls) == (str(tmp_path / "own"), "rl_model", 8)


class Harder(BaseCallback):
    """Training changes what its constructor sets."""

    def __init__(self, difficulty: float = 1.0):
        super().__init__()
        self.difficulty = difficulty

    def _on_step(self) -> bool:
        self.difficulty += 1
        return True


def test_a_callback_whose_settings_change_is_told(tmp_path: Path):
    model = REINFORCE("MlpPolicy", make_env(), n_steps=16, seed=0, device="cpu")
    with pytest.warns(UserWarning, match="Harder changes difficulty, named like its constructor's arguments"):
        model.learn(60, [TrainingCheckpoint(tmp_path), Harder()])


class Strict(BaseCallback):
    def _on_step(self) -> bool:
        return True

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        assert state_dict["there"] > 0


def test_a_state_that_a_callback_cannot_take_is_named(copied: list[Path]):
    with_callback_state(copied[0], "Strict0", other=3)
    model = REINFORCE.resume(copied[0], make_env())
    with pytest.raises(CheckpointError, match=f"{copied[0].name}: the state of Strict0 cannot be restored: KeyError"):
        model.learn(100, Strict(), reset_num_timesteps=False)
