"""The command line with images: what it chooses where the config has no entry, and what it says."""

from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import yaml
from gymnasium import spaces

pytest.importorskip("rl_zoo3")

from sb3_reinforce import REINFORCE
from sb3_reinforce.update.step_size import DEFAULTS, WITH_CONVOLUTIONS
from sb3_reinforce.vec_env.atari import AtariAdapter
from sb3_reinforce.zoo import cli
from sb3_reinforce.zoo.images import NOT_NORMALIZED, settings_for_images
from sb3_reinforce.zoo.verb_checks import check_plot_train

PROCGEN = spaces.Box(0, 255, (64, 64, 3), np.uint8)
LEAST = spaces.Box(0, 255, (36, 36, 3), np.uint8)  # for convolutions
SMALL = spaces.Box(0, 255, (7, 7, 3), np.uint8)
PLAIN = "policy_kwargs:dict(ortho_init=False)"  # made faster
ONE_UPDATE = ["-n", "8", "--eval-freq", "-1"]


class Pictures(gym.Env):
    """Episodes of two steps, and observations of any space."""

    action_space = spaces.Discrete(2)

    def __init__(self, space: spaces.Space = LEAST, render_mode: str | None = None) -> None:
        self.observation_space, self.render_mode = space, render_mode

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.t = 0
        return self.observation_space.sample(), {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.t += 1
        return self.observation_space.sample(), 1.0, self.t == 2, False, {}


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    for name, kwargs in (("Procgen", {}), ("Text", {"space": spaces.Dict(image=LEAST, mission=spaces.Text(9))})):
        gym.register(f"Pictures/{name}-v0", Pictures, kwargs=kwargs)
    yield
    for name in ("Procgen", "Text"):
        del gym.registry[f"Pictures/{name}-v0"]


def trained(name: str = "Pictures-Procgen-v0") -> REINFORCE:
    (file,) = Path("logs/reinforce").glob(f"{name}_*/{name}.zip")
    return REINFORCE.load(file)


def test_images_get_convolutions_and_stay_as_they_are(capsys: pytest.CaptureFixture[str]):
    params = ["-params", "n_envs:2", "n_steps:2", PLAIN]
    assert cli.main(["train", "--env", "Pictures/Procgen-v0", *ONE_UPDATE, *params]) == 0
    out = capsys.readouterr().out
    assert "Pictures/Procgen-v0 shows images of 36 x 36 x 3 and has no entry, so it gets policy: CnnPolicy, normalize" in out
    model = trained()
    assert model.policy_class is REINFORCE.policy_aliases["CnnPolicy"]
    assert model.observation_space == spaces.Box(0, 255, (3, 36, 36), np.uint8)
    assert (model.learning_rate, model.value_learning_rate) == (3e-4, 1e-3)
    # The other commands find it by its name, with a slash; benchmark calls enjoy
    assert cli.main(["benchmark", "-n", "5"]) == 0
    assert "|reinforce|Pictures/Procgen-v0|2|" in Path("benchmark.md").read_text().replace(" ", "")
    options = Namespace(env=["Pictures/Procgen-v0"], exp_folder="logs", algo="reinforce", episode_window=2)
    check_plot_train(options)
    assert options.env == ["Pictures-Procgen-v0"]


@pytest.mark.parametrize(
    "params, policy",
    [(["policy:'CnnPolicy'"], "CnnPolicy"), (["policy:'CnnPolicy'", "normalize:True"], "CnnPolicy"),
     (["policy:'MlpPolicy'"], "MlpPolicy")],
)  # fmt: skip
def test_the_user_decides(params: list[str], policy: str, capsys: pytest.CaptureFixture[str]):
    short = ["-params", "n_envs:1", "n_steps:2", "policy_kwargs:dict(net_arch=[2], ortho_init=False)", *params]
    assert cli.main(["train", "--env", "Pictures/Procgen-v0", *ONE_UPDATE, *short]) == 0
    assert trained().policy_class is REINFORCE.policy_aliases[policy]
    kept = "CnnPolicy takes images as they are" in capsys.readouterr().out
    assert kept == ("normalize:True" in params)


@pytest.mark.parametrize(
    "space, chosen, words",
    [
        (
            PROCGEN,
            {"policy": "CnnPolicy", "normalize": NOT_NORMALIZED},
            "images of 64 x 64 x 3 and has no entry, so it gets policy: CnnPolicy",
        ),
        (spaces.Box(0, 255, (4, 84, 84), np.uint8), {"policy": "CnnPolicy", "normalize": NOT_NORMALIZED}, "4 x 84 x 84"),
        (
            spaces.Dict(a=PROCGEN, b=spaces.Box(-1, 1, (2,))),
            {"policy": "MultiInputPolicy", "normalize": NOT_NORMALIZED},
            "so it gets policy: MultiInputPolicy, normalize: {'norm_obs': False} (-params",
        ),
        (SMALL, {}, "images of 7 x 7 x 3, too small for convolutions"),
        (spaces.Box(-1, 1, (8,)), {}, ""),
        (spaces.Box(0, 1, (64, 64, 3)), {}, ""),
        (spaces.Discrete(3), {}, ""),
    ],
)
def test_settings_for_images(space: spaces.Space, chosen: dict[str, Any], words: str):
    found, why = settings_for_images(space, {})
    assert found == chosen
    assert words in why
    assert bool(words) == bool(why)


def test_text_says_which_wrapper_leaves_it_out(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["train", "--env", "Pictures/Text-v0", *ONE_UPDATE]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert "minigrid.wrappers.ImgObsWrapper" in error
    assert not list(Path().glob("logs/reinforce/*"))
    wrapper = "gymnasium.wrappers.FilterObservation"
    params = ["-params", f"env_wrapper:{{'{wrapper}': {{'filter_keys': ['image']}}}}", "n_envs:1", "n_steps:2", PLAIN]
    assert cli.main(["train", "--env", "Pictures/Text-v0", *ONE_UPDATE, *params]) == 0


@pytest.mark.parametrize(
    "name, words",
    [
        ("ALE/Nothing-v5", "'ALE/Nothing-v5' is no registered environment. Atari games need ale-py: pip install"),
        ("NothingNoFrameskip-v4", '"sb3-reinforce[atari]"'),
        ("Nothing-v4", '"sb3-reinforce[atari]"'),
        ("CartPol-v1", "did you mean 'CartPole-v1'?"),
    ],
)
def test_without_ale_py_it_says_how_to_install_it(name, words, monkeypatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr("sb3_reinforce.zoo.environments.find_spec", lambda _: None)
    with pytest.raises(SystemExit, match="2"):
        cli.main(["train", "--env", name])
    error = capsys.readouterr().err
    assert words in error
    assert len(error.splitlines()) == 1


def test_atari_from_the_first_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    pytest.importorskip("ale_py")
    env_id, made = "ALE/Skiing-v5", []
    monkeypatch.setattr(AtariAdapter, "__init__", recorded(AtariAdapter.__init__, made))
    # env_kwargs of the config, as the entry has them: evaluations must have them, too
    kwargs = "env_kwargs:dict(frameskip=1, max_num_frames_per_episode=16)"
    short = [
        "-n",
        "8",
        "--eval-freq",
        "8",
        "--eval-episodes",
        "1",
        "-params",
        kwargs,
        "n_envs:2",
        "n_steps:4",
        "n_epochs:1",
        PLAIN,
    ]
    assert cli.main(["train", "--env", env_id, *short]) == 0
    assert f"{env_id} is not in" in (out := capsys.readouterr().out)
    assert "its entry 'atari' is used" in out
    assert [env.num_envs for env in made] == [1, 2]  # of evaluations, of training
    name = env_id.replace("/", "-")
    model = trained(name)
    assert model.observation_space.shape == (4, 84, 84)
    (run,) = Path("logs/reinforce").glob("*")
    # Games of 16 frames, which are 4 steps
    rows = (run / "0.monitor.csv").read_text().splitlines()[2:]
    assert [int(row.split(",")[1]) for row in rows] == [4] * len(rows)
    saved = yaml.load((run / name / "config.yml").read_text(), Loader=yaml.UnsafeLoader)
    assert saved["vec_env_wrapper"] == "sb3_reinforce.vec_env.vectorize"
    assert cli.main(["enjoy", "--env", env_id, "-n", "5", "--no-render"]) == 0
    assert "Atari Episode Length 4" in capsys.readouterr().out


def recorded(function: Any, made: list[Any]) -> Any:
    def record(self: Any, *args: Any, **kwargs: Any) -> None:
        made.append(self)
        function(self, *args, **kwargs)

    return record


@pytest.mark.parametrize("space, rates", [(LEAST, WITH_CONVOLUTIONS), (spaces.Box(-1, 1, (3,)), DEFAULTS)])
def test_default_learning_rates(space: spaces.Space, rates: dict[str, float], tmp_path: Path):
    policy = "CnnPolicy" if space is LEAST else "MlpPolicy"
    model = REINFORCE(policy, Pictures(space), n_episodes=1, device="cpu")
    for name, rate in rates.items():
        assert getattr(model, name) == rate
    assert [group["lr"] for group in model.policy.optimizer.param_groups] == [rates["learning_rate"]]
    assert [group["lr"] for group in model.value_optimizer.param_groups] == [rates["value_learning_rate"]]
    model.save(tmp_path / "model")
    assert REINFORCE.load(tmp_path / "model").learning_rate == rates["learning_rate"]
    given = REINFORCE(policy, Pictures(space), learning_rate=1e-2, n_episodes=1, device="cpu")
    assert (given.learning_rate, given.value_learning_rate) == (1e-2, rates["value_learning_rate"])
