"""Hyperparameter search: the study, its results, bad input, and W&B's sweep over the same space."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest

from sb3_reinforce import REINFORCE
from sb3_reinforce.schedules import make_schedule
from sb3_reinforce.zoo import cli, config_file, register
from sb3_reinforce.zoo.search_space import SEARCH_SPACE, convert_reinforce_params
from tests.test_zoo import environment, is_png, sb3_reinforce

optuna = pytest.importorskip("optuna")
yaml = pytest.importorskip("yaml")
pytest.importorskip("rl_zoo3")

JOURNAL = Path("logs/reinforce/CartPole-v1-study.log")
FOUND = Path("logs/reinforce/reinforce-CartPole-v1")
# no evaluation but the trials' own, and a rollout of every trial ends within a second
SHORT = ["--env", "CartPole-v1", "-n", "300", "--eval-episodes", "1"]


def study_of(name: str = "reinforce-CartPole-v1", folder: Path = Path()) -> Any:
    backend = optuna.storages.journal.JournalFileBackend(str(folder / JOURNAL))
    return optuna.load_study(study_name=name, storage=optuna.storages.JournalStorage(backend))


@pytest.fixture
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- a search, in this process ---


def test_a_search_is_kept_and_gone_on_with(in_folder: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["tune", *SHORT, "--n-trials", "2"]) == 0
    lines = dict(line.split(":", 1) for line in capsys.readouterr().out.splitlines()[-5:])
    assert list(lines) == ["Best trial", "Config", "Plots", "Study", "Next"]
    assert lines["Study"].strip() == f"reinforce-CartPole-v1 in {JOURNAL}"
    assert lines["Config"].strip() == str(FOUND / "best.yml")
    assert [is_png(Path(picture)) for picture in lines["Plots"].strip().split(", ")] == [True, True]
    # of the trials nothing is left but the study
    assert not list(in_folder.rglob("*.zip"))
    assert not list(in_folder.rglob("*.monitor.csv"))
    assert not list(Path("logs/reinforce").glob("CartPole-v1_*"))

    assert cli.main(["tune", *SHORT, "--n-trials", "1", "--no-optim-plots"]) == 0
    assert "Plots:      none" in capsys.readouterr().out
    study = study_of()
    assert [trial.number for trial in study.trials] == [0, 1, 2]
    assert set(study.trials[0].params) == set(SEARCH_SPACE)

    # the best trial as a config, as it is
    best = study.best_trial
    entry = yaml.safe_load((FOUND / "best.yml").read_text())["CartPole-v1"]
    assert entry["n_timesteps"] == 198900  # the config's: `-n 300` is the trials'
    assert cli.main(["train", *SHORT, "--conf-file", str(FOUND / "best.yml"), "--eval-freq", "-1"]) == 0
    same_as_trial(Path("logs/reinforce/CartPole-v1_1"), best.params)

    # trial 0 is a trial, with the storage and the study that a search has by default
    assert cli.main(["train", *SHORT, "--trial-id", "0", "--eval-freq", "-1", "--eval-final", "1"]) == 0
    same_as_trial(Path("logs/reinforce/CartPole-v1_2"), study.trials[0].params)


def same_as_trial(run: Path, params: dict[str, Any]) -> None:
    model = REINFORCE.load(run / "CartPole-v1.zip")
    expected = convert_reinforce_params(params)
    name = "target_kl" if expected["natural_gradient"] else "learning_rate"
    schedule = make_schedule(name, getattr(model, name))
    size = str(expected.pop(name))
    assert schedule(1.0) == pytest.approx(float(size.removeprefix("lin_")))
    assert schedule(0.0) == (0.0 if size.startswith("lin_") else schedule(1.0))
    normalize = expected.pop("normalize")
    assert (run / "CartPole-v1/vecnormalize.pkl").is_file() == bool(normalize)
    policy_kwargs = expected.pop("policy_kwargs")
    assert {name: model.policy_kwargs[name] for name in policy_kwargs} == policy_kwargs
    assert {name: getattr(model, name) for name in expected} == expected


def test_trial_0_upstream(in_folder: Path):
    """What the zoo itself makes of ``--trial-id 0``. Once it loads it, ours need not read hyperparameters for that."""
    from argparse import Namespace

    from rl_zoo3.exp_manager import ExperimentManager

    register()
    options = {"config": str(config_file()), "storage": "x.log", "study_name": "x", "trial_id": 0}
    upstream = ExperimentManager(Namespace(), "reinforce", "CartPole-v1", "logs", **options)
    loaded = []
    upstream.load_trial = lambda *arguments: loaded.append(arguments) or {}
    upstream.read_hyperparameters()
    assert not loaded
    upstream.trial_id = 1
    upstream.read_hyperparameters()
    assert loaded


class NotANumber(gym.Wrapper):
    """CartPole whose rewards become NaN."""

    def step(self, action: Any) -> Any:
        observation, _, terminated, truncated, info = super().step(action)
        return observation, float("nan"), terminated, truncated, info


def test_nan_prunes_and_no_finished_trial_is_one_line(in_folder: Path, capsys: pytest.CaptureFixture[str]):
    if "NotANumber-v0" not in gym.registry:
        gym.register("NotANumber-v0", lambda: NotANumber(gym.make("CartPole-v1")))
    arguments = ["tune", "--env", "NotANumber-v0", "-n", "200", "--n-trials", "2"]
    assert cli.main([*arguments, "--storage", "logs/nan.log", "--study-name", "nan"]) == 1
    output = capsys.readouterr()
    assert output.out.splitlines()[-1].startswith(
        "No trial of 'nan' has finished (2 pruned, 0 failed), so there is no best one. Last error: reward"
    )
    assert "Traceback" not in output.err
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend("logs/nan.log"))
    study = optuna.load_study(study_name="nan", storage=storage)
    assert [trial.state.name for trial in study.trials] == ["PRUNED", "PRUNED"]
    assert not list(in_folder.rglob("best.yml"))


def test_what_breaks_a_trial_is_not_taken_for_an_empty_study(in_folder: Path, monkeypatch: pytest.MonkeyPatch):
    from rl_zoo3 import exp_manager

    def broken(*arguments: Any, **kwargs: Any) -> None:
        raise ValueError("out of order")

    monkeypatch.setattr(exp_manager, "TrialEvalCallback", broken)
    for n_jobs in ("1", "2"):
        with pytest.raises(ValueError, match="out of order"):
            cli.main(["tune", *SHORT, "--n-trials", "2", "--n-jobs", n_jobs])


def test_normalization_of_a_trial(in_folder: Path, monkeypatch: pytest.MonkeyPatch):
    """Trials are trained as ``--trial-id`` trains them later: VecNormalize as sampled, with the trial's gamma."""
    seen = []
    learn = REINFORCE.learn

    def learn_and_look(model: REINFORCE, *arguments: Any, **kwargs: Any) -> Any:
        env = model.get_vec_normalize_env()
        seen.append(None if env is None else (env.norm_obs, env.norm_reward, env.gamma == model.gamma))
        return learn(model, *arguments, **kwargs)

    monkeypatch.setattr(REINFORCE, "learn", learn_and_look)
    assert cli.main(["tune", *SHORT, "--n-trials", "3", "--no-optim-plots", "--seed", "0", "--sampler", "random"]) == 0
    expected = [
        (trial.params["norm_obs"], trial.params["norm_reward"], True)
        if trial.params["norm_obs"] or trial.params["norm_reward"]
        else None
        for trial in study_of().trials
    ]
    assert seen == expected
    assert len(set(seen)) == 3, "choose another seed"


def test_trials_in_threads(in_folder: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["tune", *SHORT, "--n-trials", "3", "--n-jobs", "2", "--no-optim-plots"]) == 0
    assert "3 finished, 0 pruned, 0 failed" in capsys.readouterr().out


def test_another_algorithm(in_folder: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["tune", "--algo", "a2c", *SHORT, "--n-trials", "1"]) == 0
    config = Path("logs/a2c/a2c-CartPole-v1/best.yml")
    assert "nn." in yaml.safe_load(config.read_text())["CartPole-v1"]["policy_kwargs"]
    capsys.readouterr()
    assert cli.main(["train", "--algo", "a2c", *SHORT, "--conf-file", str(config), "--eval-freq", "-1"]) == 0
    assert "Model:          logs/a2c/CartPole-v1_1/CartPole-v1.zip" in capsys.readouterr().out


def test_a_python_config(in_folder: Path, capsys: pytest.CaptureFixture[str]):
    """What YAML can hold of it is in the best trial's; what it cannot is refused before the search, not after."""
    lines = "from stable_baselines3.common.buffers import RolloutBuffer\nfrom torch import nn\n"
    lines += "hyperparams = {'CartPole-v1': dict(n_timesteps=300, policy='MlpPolicy', KWARGS)}\n"
    Path("mine.py").write_text(lines.replace("KWARGS", "policy_kwargs=dict(activation_fn=nn.ELU, net_arch=[8])"))
    assert cli.main(["tune", "--algo", "ars", "--conf-file", "mine.py", *SHORT, "--n-trials", "1", "--no-optim-plots"]) == 0
    entry = yaml.safe_load(Path("logs/ars/ars-CartPole-v1/best.yml").read_text())["CartPole-v1"]
    assert entry["policy_kwargs"] == "dict(activation_fn=nn.ELU, net_arch=[8])"
    Path("mine.py").write_text(lines.replace("KWARGS", "policy_kwargs='dict()', rollout_buffer_class=RolloutBuffer"))
    assert cli.main(["tune", "--conf-file", "mine.py", *SHORT, "--n-trials", "1"]) == 2
    assert "error: the best trial is written as YAML, which cannot hold <class 'stable" in capsys.readouterr().err


# --- bad input ---


def test_a_study_with_other_ranges(in_folder: Path, capsys: pytest.CaptureFixture[str]):
    JOURNAL.parent.mkdir(parents=True)
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(JOURNAL)))
    for name, suggest in {
        "reinforce-CartPole-v1": lambda trial: trial.suggest_float("learning_rate", 1e-4, 1.0, log=True),
        "categories": lambda trial: float(trial.suggest_categorical("n_steps", [1, 2])),
        "theirs": lambda trial: trial.suggest_float("one_minus_gamma", 0.0, 1.0),
    }.items():
        optuna.create_study(study_name=name, storage=storage, direction="maximize").optimize(suggest, n_trials=1)
    assert cli.main(["tune", *SHORT]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == (
        "sb3-reinforce tune: error: --study-name 'reinforce-CartPole-v1' has searched learning_rate in 0.0001 to 1, log, "
        "now it would be 0.0001 to 0.01, log: choose another --study-name"
    )
    assert cli.main(["tune", *SHORT, "--study-name", "categories"]) == 2
    assert "has searched n_steps in [1, 2], now it would be [128, 256" in capsys.readouterr().err
    assert cli.main(["tune", *SHORT, "--study-name", "theirs"]) == 2
    assert "has searched one_minus_gamma in 0 to 1, now it would be left as it is: " in capsys.readouterr().err
    assert cli.main(["train", *SHORT, "--trial-id", "1"]) == 2
    assert "--trial-id must be one of the 1 trials of 'reinforce-CartPole-v1', from 0, got 1" in capsys.readouterr().err
    assert cli.main(["train", *SHORT, "--trial-id", "0", "--study-name", "x"]) == 2
    assert (
        f"--study-name 'x' is not in {JOURNAL}, which has: categories, reinforce-CartPole-v1, theirs"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    "arguments, words",
    [
        (
            ["tune", "--storage", "study.db"],
            "--storage must be a journal's file, whose name ends in .log, or a database's address",
        ),
        (["tune", "--storage", "no://where"], "--storage no://where cannot be used: "),
        (["tune", "-params", "n_epochs:0"], "n_epochs must be a whole number >= 1, got 0 (hyperparameters from"),
        (["tune", "--algo", "crossq"], "RL Zoo has no search space for crossq; it has for a2c"),
        (["train", "--trial-id", "0"], "--storage logs/reinforce/CartPole-v1-study.log: there is no such journal"),
        (["train", "--sampled", '{"gama": 0.9}'], "--sampled: reinforce has no hyperparameter 'gama', did you mean 'gamma'?"),
        (
            ["train", "--env", "Pendulum-v1", "--sampled", '{"learning_rate": 0.1}'],
            "--sampled: learning_rate has no effect with the config's natural_gradient=True: sample that, too",
        ),
        (
            ["train", "--sampled", '{"lr_schedule": "lin"}'],
            "--sampled: lr_schedule is that of learning_rate: sample that, too",
        ),
        (["train", "--sampled", '{"net_arch": "huge"}'], "--sampled: 'huge' is nothing that the search of reinforce knows"),
    ],
)
def test_one_line(arguments: list[str], words: str, in_folder: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.main([*arguments, "-n", "300"]) == 2
    error = capsys.readouterr().err
    assert f"sb3-reinforce {arguments[0]}: error: {words}" in error.splitlines()[-1]
    assert "Traceback" not in error


def test_a_file_that_is_no_journal_is_left_alone(in_folder: Path, capsys: pytest.CaptureFixture[str]):
    Path("notes.log").write_text('{"mine": 1}\n')
    assert cli.main(["tune", "--env", "CartPole-v1", "--n-trials", "1", "-n", "300", "--storage", "notes.log"]) == 2
    assert "--storage notes.log must be a journal that Optuna has written, or a new file" in capsys.readouterr().err
    assert Path("notes.log").read_text() == '{"mine": 1}\n'
    assert cli.main(["tune", "--env", "CartPole-v1", "--n-trials", "1", "-n", "300", "--storage", "notes.log/x.log"]) == 2
    assert "--storage notes.log/x.log cannot be used: " in capsys.readouterr().err


@pytest.mark.parametrize("text", ["{", "3"])
def test_sampled_must_be_a_json_object(text: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["train", "--sampled", text])
    assert f"argument --sampled: must be {'JSON' if text == '{' else 'a JSON object'}, got {text!r}" in capsys.readouterr().err


def test_a_search_does_not_resume_a_run(in_folder: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["train", *SHORT, "--checkpoint-every", "1", "--eval-freq", "-1"]) == 0
    resume = ["train", "--resume", "logs/reinforce/CartPole-v1_1"]
    with pytest.raises(SystemExit, match="2"):
        cli.main([*resume, "-optimize"])
    assert "--resume goes on with a training run; a search goes on by itself" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        cli.main([*resume, "-params", "gamma:0.5", "--seed", "3"])
    assert "own hyperparameters and seed, so -params, --seed cannot be given" in capsys.readouterr().err
    assert cli.main([*resume, "--eval-freq", "-1"]) == 0


def test_help_of_tune(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["tune", "--help"])
    output = capsys.readouterr().out
    assert "example: sb3-reinforce tune --env CartPole-v1" in output
    assert "--n-trials" in output


# --- W&B's sweep ---


def sweep() -> dict[str, Any]:
    return yaml.safe_load(config_file("sweep.yml").read_text())


def test_the_sweep_has_the_same_ranges():
    parameters = {
        name: (spec["min"], spec["max"]) if "min" in spec else spec["values"] for name, spec in sweep()["parameters"].items()
    }
    assert parameters == SEARCH_SPACE
    logarithmic = {name for name, spec in sweep()["parameters"].items() if spec.get("distribution") == "log_uniform_values"}
    assert logarithmic == {name for name, values in SEARCH_SPACE.items() if isinstance(values, tuple)}
    # WandbCallback logs what the sweep looks at
    assert sweep()["metric"] == {"name": "eval/mean_reward", "goal": "maximize"}


def test_a_run_of_the_sweep(tmp_path: Path):
    """The command that W&B's agent makes of one set of values, in the environment that the agent gives it."""
    pytest.importorskip("wandb")
    utils = pytest.importorskip("wandb.sdk.launch.sweeps.utils")
    from wandb.sdk.lib import config_util

    from sb3_reinforce.tracking.runs import find_runs

    rng = random.Random(0)
    values = {
        name: {"value": rng.uniform(spec["min"], spec["max"]) if "min" in spec else rng.choice(spec["values"])}
        for name, spec in sweep()["parameters"].items()
    }
    # as wandb_agent.Agent._command_run puts it together; the installed script may not be this checkout's
    macros = utils.create_sweep_command_args({"args": values})
    macros |= {"env": ["/usr/bin/env"], "program": [sweep()["program"]]}
    words: list[str] = []
    for word in utils.create_sweep_command(sweep()["command"]):
        words += macros[word[2:-1]] if word.startswith("${") else [word]
    assert words[:3] == ["/usr/bin/env", "sb3-reinforce", "train"]
    words[1:2] = [sys.executable, "-m", "sb3_reinforce"]
    config_util.save_config_file_from_dict(str(tmp_path / "params.yaml"), values)
    agent = {"WANDB_SWEEP_ID": "s", "WANDB_RUN_ID": "r1", "WANDB_SWEEP_PARAM_PATH": "params.yaml", "WANDB_MODE": "offline"}
    done = subprocess.run(
        [*words, "-n", "300", "--eval-freq", "200"],
        cwd=tmp_path,
        env=environment(tmp_path) | agent,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    [run_folder] = (tmp_path / "logs/reinforce").glob("CartPole-v1_1_*")
    same_as_trial(run_folder, {name: value["value"] for name, value in values.items()})
    [run] = find_runs([tmp_path / "wandb"])
    assert run.config["net_arch"] == values["net_arch"]["value"]
    assert len(run.metrics["eval/mean_reward"][0])


# --- in processes of their own ---


@pytest.mark.slow
def test_two_workers_share_a_journal(tmp_path: Path):
    search = [sys.executable, "-m", "sb3_reinforce", "tune", *SHORT, "--n-trials", "3"]
    workers = [
        subprocess.Popen(
            search, cwd=tmp_path, env=environment(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    for worker in workers:
        out, err = worker.communicate(timeout=240)
        assert worker.returncode == 0, err
        assert "Traceback" not in err
        assert "Best trial: " in out.splitlines()[-5]
    study = study_of(folder=tmp_path)
    assert [trial.number for trial in study.trials] == [0, 1, 2, 3, 4, 5]
    assert not list(tmp_path.rglob("*.zip"))

    done = sb3_reinforce("train", *SHORT, "--trial-id", "0", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    same_as_trial(tmp_path / "logs/reinforce/CartPole-v1_1", study.trials[0].params)
    done = sb3_reinforce("train", *SHORT, "--conf-file", str(FOUND / "best.yml"), "--eval-final", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    same_as_trial(tmp_path / "logs/reinforce/CartPole-v1_2", study.best_trial.params)


@pytest.mark.slow
def test_each_trial_is_a_wandb_run_of_one_group(tmp_path: Path):
    pytest.importorskip("wandb")
    from sb3_reinforce.tracking.runs import find_runs

    tracking = ["--track", "--wandb-mode", "offline", "--pruner", "none", "--no-optim-plots"]
    done = sb3_reinforce("tune", *SHORT, "--n-trials", "2", *tracking, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    runs = find_runs([tmp_path / "wandb"])
    assert sorted((run.name, run.group, run.state) for run in runs) == [
        ("trial-0", "reinforce-CartPole-v1", "finished"),
        ("trial-1", "reinforce-CartPole-v1", "finished"),
    ]
    trials = study_of(folder=tmp_path).trials
    for run in runs:
        assert json.loads(json.dumps(trials[run.config["trial"]].params)) == run.config["trial_params"]
        assert run.config["algo"] == "REINFORCE"
        assert run.config["command"].endswith("--no-optim-plots")
        assert run.summary["trial/pruned"] == 0
        assert len(run.metrics["eval/mean_reward"][0])
    assert not list(tmp_path.rglob("*.zip"))
    assert not os.path.exists(tmp_path / "logs/reinforce/CartPole-v1_1")
