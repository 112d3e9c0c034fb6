"""What the command line makes of configs, and of an agent to go on with."""

import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import yaml
from gymnasium import spaces
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecNormalize

from sb3_reinforce import REINFORCE
from sb3_reinforce.schedules import make_schedule
from sb3_reinforce.zoo import cli, config_file, register
from tests.test_zoo import environment

pytest.importorskip("rl_zoo3")

HEAD = "CartPole-v1:\n  policy: MlpPolicy\n"
SHORT = ["--env", "CartPole-v1", "-n", "300", "--eval-freq", "-1"]


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- configs ---


@pytest.mark.parametrize(
    "config, words",
    [
        (
            HEAD + "  n_timesteps: 300\n  learning_rate: 3e-4\n",
            "mine.yml: learning_rate must be a number, got the text '3e-4'",
        ),
        (HEAD + "  n_timesteps: 1e5\n", "mine.yml: n_timesteps must be a number, got the text '1e5'"),
        (HEAD + "  n_timesteps: 300\n  gamma: '0.9'\n", "mine.yml: gamma must be a number, got the text '0.9'"),
        (
            HEAD + "  n_timesteps: 300\n  policy_kwargs: {optimizer_kwargs: {eps: 1e-5}}\n",
            "mine.yml: policy_kwargs must be a number, got the text '1e-5'",
        ),
        (
            HEAD + "  n_timesteps: 300\n  learning_rate: lin_fast\n",
            "mine.yml: learning_rate must be a number >= 0, a schedule",
        ),
        (HEAD + "  n_timesteps: 300\n  ent_coef: lin_-1\n", "ent_coef must be finite and >= 0 throughout training, got -1.0"),
        (HEAD + "  n_timesteps: 300\n  gamma: 7\n", "gamma must be a number in [0, 1], got 7 (hyperparameters from mine.yml)"),
        (
            HEAD + "  n_timesteps: 300\n  learning_rat: 0.1\n",
            "has no hyperparameter 'learning_rat', did you mean 'learning_rate'?",
        ),
        (HEAD + "  n_timesteps: 300\n  n_envs: 1.5\n", "mine.yml: n_envs must be a whole number >= 1, got 1.5"),
        (HEAD + "  n_timesteps: 0\n", "mine.yml: n_timesteps must be a whole number >= 1, got 0"),
        (HEAD, "mine.yml: n_timesteps is missing"),
        ("CartPole-v1:\n  n_timesteps: 300\n", "mine.yml: policy is missing"),
        ("CartPole-v1:\n  n_timesteps: 300\n  policy: MlpPolcy\n", "got 'MlpPolcy' (hyperparameters from mine.yml)"),
        (
            "CartPole-v1:\n  n_timesteps: 300\n  policy: my.Policy\n",
            "mine.yml: policy must be the dotted path of what can be imported, got 'my.Policy' (No module named 'my')",
        ),
        (
            HEAD + "  n_timesteps: 300\n  callback: no.such.Callback\n",
            "mine.yml: callback must be the dotted path of what can be imported, got 'no.such.Callback'",
        ),
        (
            HEAD + "  n_timesteps: 300\n  callback: [sb3_reinforce.Nothing: {a: 1}]\n",
            "got 'sb3_reinforce.Nothing' (module 'sb3_reinforce' has no attribute 'Nothing')",
        ),
        (HEAD + "  n_timesteps: 300\n  env_wrapper: Wrapper\n", "mine.yml: env_wrapper must be the dotted path"),
        (
            HEAD + "  n_timesteps: 300\n  normalize: dict(norm_obs=Yes)\n",
            "mine.yml: normalize must be Python, got 'dict(norm_obs=Yes)' (name 'Yes' is not defined)",
        ),
        (
            HEAD + "  n_timesteps: 300\n  monitor_kwargs: {info_keyword: [a]}\n",
            "mine.yml: monitor_kwargs must be a dict with some of allow_early_resets, reset_keywords, info_keywords, got",
        ),
        (HEAD + "  n_timesteps: 300\n  monitor_kwargs: 3\n", "mine.yml: monitor_kwargs must be a dict with some of"),
        (
            HEAD + "  n_timesteps: 300\n  monitor_kwargs: dict(info_keywords='speed')\n",
            "mine.yml: monitor_kwargs: info_keywords must be a list of names, got 'speed'",
        ),
        ("CartPole-v1: 3\n", "mine.yml: CartPole-v1 must hold `key: value` lines, got 3"),
        ("[CartPole-v1]\n", "--conf-file mine.yml must hold an entry per environment, got ['CartPole-v1']"),
        ("CartPole-v1: [\n", "--conf-file mine.yml is no YAML: while parsing a flow node"),
        ("Pendulum-v1: {}\n", "mine.yml has no entry for CartPole-v1, and no `default`"),
    ],
)
def test_a_bad_config_is_one_line(config: str, words: str, capsys: pytest.CaptureFixture[str]):
    Path("mine.yml").write_text(config)
    assert cli.main(["train", "--env", "CartPole-v1", "--conf-file", "mine.yml", "--eval-freq", "-1"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("sb3-reinforce train: error: ")
    assert len(error.splitlines()) == 1
    assert words in error


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--conf-file", "no.yml"], "--conf-file no.yml cannot be read: No such file or directory"),
        (["--conf-file", "no.py"], "--conf-file no.py cannot be read: No such file or directory"),
        (["--conf-file", "no_module"], "--conf-file must be a .yml file, a .py file or a module, got no_module"),
        (["--conf-file", "json"], "--conf-file json defines no dict `hyperparams`"),
        (["-params", "gamma:7"], "gamma must be a number in [0, 1], got 7 (hyperparameters from"),
        (["-params", "gama:0.9"], "-params: reinforce has no hyperparameter 'gama', did you mean 'gamma'?"),
        (["-params", "vf_coef:0.5"], "-params: reinforce has no hyperparameter 'vf_coef': the value network has an optimiser"),
        (["-params", "policy:'CnnPolicy'"], "CnnPolicy is for images, got Box"),
        (["-params", "policy_kwargs:dict(net_arc=[8])"], "MlpPolicy has no 'net_arc', did you mean 'net_arch'?"),
        (["-params", "callback:'no.where'"], "-params: callback must be the dotted path"),
    ],
)
def test_a_bad_option_is_one_line(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["train", *SHORT, *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert len(error.splitlines()) == 1
    assert not list(Path().glob("logs/reinforce/*"))  # no empty run, which `enjoy` would take for the newest


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["-params", "gamma:0.9", "baseline:none"], "-params takes name:value"),
        (["-params", "gamma=0.9"], "got 'gamma=0.9' (there is no colon)"),
        (["--env-kwargs", "render_mode:human"], "--env-kwargs takes name:value"),
        (["-i", "nowhere.zip"], "-i must be the file of a saved model, which ends in .zip, got 'nowhere.zip'"),
        (
            ["-n", "many"],
            "argument -n/--n-timesteps: invalid int value: 'many'; `sb3-reinforce train --help` lists the options",
        ),
        (["--tack"], "unrecognized arguments: --tack, did you mean --track? `sb3-reinforce train --help` lists the options"),
        (["--optimize"], "unrecognized arguments: --optimize, did you mean --optimize-hyperparameters?"),
        (["--algo", "renforce"], "argument --algo: invalid choice: 'renforce'"),
        (["-optimize", "-i", "mine.zip"], "-i trains an agent further, and a search trains new ones: leave it out"),
        (["-i", "."], "-i must be the file of a saved model, which ends in .zip, got '.'"),
    ],
)
def test_a_usage_error_is_one_line(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["train", *SHORT, *arguments])
    error = capsys.readouterr().err
    assert words in error
    assert len(error.splitlines()) == 1


def test_what_the_config_lacks_is_said(capsys: pytest.CaptureFixture[str]):
    Path("mine.yml").write_text("default: {n_timesteps: 300, policy: MlpPolicy}\n")
    assert cli.main(["train", *SHORT, "--conf-file", "mine.yml"]) == 0
    assert "CartPole-v1 is not in mine.yml: its entry 'default' is used" in capsys.readouterr().out


def test_configs_as_python(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    Path("mine_of_test.py").write_text("hyperparams = {'CartPole-v1': dict(n_timesteps=300, policy='MlpPolicy', gamma=0.5)}\n")
    monkeypatch.syspath_prepend(str(Path.cwd()))
    for run, name in enumerate(("mine_of_test.py", "mine_of_test"), start=1):
        assert cli.main(["train", *SHORT, "--conf-file", name]) == 0
        assert REINFORCE.load(f"logs/reinforce/CartPole-v1_{run}/CartPole-v1.zip").gamma == 0.5


ENTRIES = [
    (name, env_id.replace("default", "CartPole-v0"))
    for name in ("reinforce.yml", "reinforce_reuse.yml")
    for env_id in yaml.safe_load(config_file(name).read_text())
    if env_id != "atari"  # test_atari_from_the_first_command
]


@pytest.mark.parametrize("name, env_id", ENTRIES)
def test_every_entry_of_our_configs_trains(name: str, env_id: str):
    """With its own arguments, but for the size of the rollout: one episode."""
    small = ["--hyperparams", "n_envs:1", "n_steps:1", "n_value_epochs:1"]
    arguments = ["train", "--env", env_id, "--conf-file", str(config_file(name)), "-n", "1", "--eval-freq", "-1", *small]
    assert cli.main(arguments) == 0
    assert REINFORCE.load(f"logs/reinforce/{env_id}_1/{env_id}.zip").num_timesteps >= 1


class Partly(gym.Env):
    """A Box beside what VecNormalize cannot take."""

    observation_space = spaces.Dict(speed=spaces.Box(-9, 9, (2,), np.float32), gear=spaces.Discrete(3))
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 1.0, bool(self.np_random.random() < 0.2), False, {}


def test_normalize_leaves_out_what_is_no_box():
    """The default entry has ``normalize: true``."""
    short = ["-n", "300", "--eval-freq", "-1", "-params", "n_steps:16"]
    gym.register("Partly-v0", Partly)
    try:
        assert cli.main(["train", "--env", "Partly-v0", *short, "policy:'MultiInputPolicy'"]) == 0
    finally:
        del gym.registry["Partly-v0"]
    statistics = Path("logs/reinforce/Partly-v0_1/Partly-v0/vecnormalize.pkl").read_bytes()
    assert set(pickle.loads(statistics).obs_rms) == {"speed"}

    assert cli.main(["train", "--env", "FrozenLake-v1", *short]) == 0
    normalize = pickle.loads(Path("logs/reinforce/FrozenLake-v1_1/FrozenLake-v1/vecnormalize.pkl").read_bytes())
    assert (normalize.norm_obs, normalize.norm_reward) == (False, True)
    assert cli.main(["enjoy", "--env", "FrozenLake-v1", "-n", "20", "--no-render"]) == 0


def test_a_folder_that_cannot_be_made_is_one_line(capsys: pytest.CaptureFixture[str]):
    Path("file").touch()
    assert cli.main(["train", *SHORT, "-f", "file"]) == 2
    error = capsys.readouterr().err
    assert "the run's folder file/reinforce/CartPole-v1_1 cannot be made: Not a directory" in error
    assert len(error.splitlines()) == 1


def test_the_zoos_own_configs_pass():
    """What is refused is refused in no entry that RL Zoo ships for an environment of gymnasium's own."""
    import rl_zoo3

    from sb3_reinforce.zoo.config import check_entry

    register()
    checked = 0
    for file in sorted((Path(rl_zoo3.__file__).parent / "hyperparams").glob("*.yml")):
        if file.stem not in rl_zoo3.ALGOS:
            continue
        for env_id in ("CartPole-v1", "Pendulum-v1", "LunarLander-v3", "HalfCheetah-v4", "BipedalWalker-v3"):
            entry = yaml.safe_load(file.read_text()).get(env_id)
            if entry is not None:
                check_entry(file.stem, entry, lambda key: key)
                checked += 1
    assert checked > 20


# --- schedules ---

SCHEDULES = {"learning_rate": 3e-3, "clip_range": 0.2, "ent_coef": 0.01, "value_learning_rate": 0.02, "target_kl": 0.03}


def test_all_schedules_from_a_config_load_without_rl_zoo():
    """``lin_`` of every argument that takes a schedule, trained by the zoo, continued by it, loaded without it."""
    lines = [f"  {name}: lin_{value}\n" for name, value in SCHEDULES.items()]
    Path("mine.yml").write_text(HEAD + "  n_timesteps: 1500\n  n_epochs: 2\n" + "".join(lines))
    arguments = ["train", "--env", "CartPole-v1", "--conf-file", "mine.yml", "--eval-freq", "-1"]
    assert cli.main(arguments) == 0
    first = "logs/reinforce/CartPole-v1_1/CartPole-v1.zip"
    assert cli.main([*arguments, "-i", first]) == 0

    for run in (1, 2):
        model = REINFORCE.load(f"logs/reinforce/CartPole-v1_{run}/CartPole-v1.zip")
        for name, value in SCHEDULES.items():
            schedule = make_schedule(name, getattr(model, name))
            assert [schedule(progress) for progress in (1.0, 0.5, 0.0)] == pytest.approx([value, value / 2, 0.0]), name
    without_zoo = (
        "import sys; sys.modules['rl_zoo3'] = None; from sb3_reinforce import REINFORCE; "
        "print([REINFORCE.load(path).lr_schedule(0.5) for path in sys.argv[1:]])"
    )
    models = [f"logs/reinforce/CartPole-v1_{run}/CartPole-v1.zip" for run in (1, 2)]
    done = subprocess.run(
        [sys.executable, "-c", without_zoo, *models], env=environment(Path.cwd()), capture_output=True, text=True, timeout=120
    )
    assert done.stdout == "[0.0015, 0.0015]\n", done.stderr


def test_a_schedule_given_to_load_is_saved_as_sb3s(tmp_path: Path):
    from rl_zoo3.utils import SimpleLinearSchedule

    REINFORCE("MlpPolicy", "CartPole-v1", device="cpu").save("model")
    model = REINFORCE.load("model", **{name: SimpleLinearSchedule(value) for name, value in SCHEDULES.items()})
    assert {type(getattr(model, name)) for name in SCHEDULES} == {LinearSchedule}


# --- train -i ---

CONFIG = """Pendulum-v1:
  policy: MlpPolicy
  n_timesteps: 1200
  n_envs: 2
  n_steps: 200
  normalize: true
  learning_rate: lin_3e-3
"""
RUN = "logs/reinforce/Pendulum-v1_{}"


def trained() -> str:
    """An agent of 1,200 steps whose config is no longer there."""
    Path("mine.yml").write_text(CONFIG)
    assert cli.main(["train", "--env", "Pendulum-v1", "--conf-file", "mine.yml", "--eval-freq", "-1", "--seed", "1"]) == 0
    Path("mine.yml").unlink()
    return RUN.format(1) + "/Pendulum-v1.zip"


def statistics(run: int) -> VecNormalize:
    with open(RUN.format(run) + "/Pendulum-v1/vecnormalize.pkl", "rb") as file:
        return pickle.load(file)


def rates_of(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, float]]:
    """Steps and learning rate of every update from now on."""
    seen: list[tuple[int, float]] = []
    train = REINFORCE.train

    def train_and_look(model: REINFORCE) -> None:
        train(model)
        seen.append((model.num_timesteps, model.policy.optimizer.param_groups[0]["lr"]))

    monkeypatch.setattr(REINFORCE, "train", train_and_look)
    return seen


@pytest.mark.parametrize("more", [[], ["--checkpoint-every", "0"]])
def test_goes_on_with_an_agent(more: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    agent = trained()
    seen = rates_of(monkeypatch)
    capsys.readouterr()
    arguments = ["train", "--env", "Pendulum-v1", "-i", agent, "-n", "800", "--eval-freq", "400", "--seed", "2", "-v", *more]
    assert cli.main(arguments) == 0
    output = capsys.readouterr().out
    # its own config, beside it, and not ours
    assert f"Loading hyperparameters from: {RUN.format(1)}/Pendulum-v1/config.yml" in output
    assert f"Going on from {agent}, at 1200 of 2000 steps" in output
    model = REINFORCE.load(RUN.format(2) + "/Pendulum-v1.zip")
    assert model.num_timesteps == 2000
    assert model.n_steps == 200
    # 200 steps and 2 environments per update; the rate falls to 0 over all 2,000 steps: 3e-3 * (2000 - 1600) / 2000
    assert seen == [(1600, pytest.approx(0.0006)), (2000, 0.0)]
    # evaluated every 400 steps of 1200..2000
    assert np.load(RUN.format(2) + "/evaluations.npz")["timesteps"].tolist() == [1600, 2000]
    # 2 observations per reset and rollout more than steps, see VecNormalize.reset; the first run's are in the second's
    counts = [statistics(run).obs_rms.count for run in (1, 2)]
    assert 1200 <= counts[0] < 1300
    assert counts[1] == pytest.approx(counts[0] + 800 + 2 * 3, abs=6)
    assert not np.allclose(statistics(1).obs_rms.mean, statistics(2).obs_rms.mean, atol=1e-9)


def test_gone_on_with_stopped_and_resumed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """``--resume`` of a run begun with ``-i``: as many steps more as were asked for, as if never stopped."""
    from sb3_reinforce.zoo.checkpoints import RunCheckpoint

    arguments = ["train", "--env", "Pendulum-v1", "-i", trained(), "-n", "2400", "--eval-freq", "-1", "--seed", "2"]
    arguments += ["--checkpoint-every", "1"]
    assert cli.main(arguments) == 0

    def at_step_600(callback: RunCheckpoint) -> bool:
        if callback.n_calls == 600:
            os.kill(os.getpid(), signal.SIGTERM)
        return True

    with monkeypatch.context() as patch:
        patch.setattr(RunCheckpoint, "_on_step", at_step_600)
        assert cli.main(arguments) == 128 + signal.SIGTERM
    capsys.readouterr()
    assert cli.main(["train", "--resume", RUN.format(3)]) == 0
    assert "of 3600 steps" in capsys.readouterr().out
    whole, resumed = (REINFORCE.load(RUN.format(run) + "/Pendulum-v1.zip") for run in (2, 3))
    assert whole.num_timesteps == resumed.num_timesteps == 3600
    for name, value in whole.policy.state_dict().items():
        assert value.tolist() == resumed.policy.state_dict()[name].tolist(), name


def test_what_the_user_gives_wins_over_the_agents_config():
    agent = trained()
    Path("other.yml").write_text(CONFIG.replace("n_steps: 200", "n_steps: 400"))
    assert cli.main(["train", "--env", "Pendulum-v1", "-i", agent, "-n", "400", "--conf-file", "other.yml"]) == 0
    assert REINFORCE.load(RUN.format(2) + "/Pendulum-v1.zip").n_steps == 400


def test_an_agent_without_its_statistics_and_of_another_kind(capsys: pytest.CaptureFixture[str]):
    agent = Path(trained())
    Path("alone.zip").write_bytes(agent.read_bytes())
    Path("mine.yml").write_text(CONFIG)
    arguments = ["train", "--env", "Pendulum-v1", "--conf-file", "mine.yml", "-n", "400", "--eval-freq", "-1"]
    assert cli.main([*arguments, "-i", "alone.zip"]) == 0
    assert "There is no Pendulum-v1/vecnormalize.pkl: VecNormalize starts afresh" in capsys.readouterr().out
    Path("torn.zip").write_bytes(agent.read_bytes()[:1000])
    assert cli.main([*arguments, "-i", "torn.zip"]) == 2
    assert "sb3-reinforce train: error: -i torn.zip: torn.zip must be a whole model file" in capsys.readouterr().err
    assert cli.main(["train", *SHORT, "-i", "alone.zip"]) == 2
    assert "sb3-reinforce train: error: -i alone.zip: Observation spaces do not match" in capsys.readouterr().err


def test_another_algorithm_goes_on():
    arguments: list[Any] = ["train", "--algo", "a2c", "--env", "CartPole-v1", "-n", "200", "--eval-freq", "-1"]
    assert cli.main(arguments) == 0
    from stable_baselines3 import A2C

    assert cli.main([*arguments, "-i", "logs/a2c/CartPole-v1_1/CartPole-v1.zip"]) == 0
    first, second = (A2C.load(f"logs/a2c/CartPole-v1_{run}/CartPole-v1.zip") for run in (1, 2))
    assert second.num_timesteps == 2 * first.num_timesteps
    assert A2C.learn.__defaults__ is not None  # put back
