"""The model card of `push`: its commands are those that work, its numbers those of the run."""

import importlib
import json
import shlex
from collections import OrderedDict
from pathlib import Path

import pytest

pytest.importorskip("rl_zoo3")
import yaml

from sb3_reinforce.zoo import patches
from sb3_reinforce.zoo.model_card import as_trained, our_card


def uploaded(folder: Path, **arguments: object) -> Path:
    """What `push` has written beside the card."""
    folder.mkdir()
    given = dict(seed=1, n_timesteps=2000, hyperparams=None, env_kwargs=None, conf_file="a/reinforce.yml") | arguments
    (folder / "args.yml").write_text(yaml.dump(OrderedDict(given)))
    (folder / "config.yml").write_text(yaml.dump(OrderedDict(gamma=0.9, policy="MlpPolicy")))
    score = dict(mean_reward=336.6, std_reward=75.4986, is_deterministic=True, n_eval_episodes=10)
    (folder / "results.json").write_text(json.dumps(score))
    return folder


def zoo_card(**env_kwargs: object) -> str:
    with patches.hub_metadata():
        make = importlib.import_module("rl_zoo3.push_to_hub").generate_model_card
        return make("reinforce", "REINFORCE", "me", "CartPole-v1", 1.0, 0.5, {"gamma": 0.9}, env_kwargs)[0]


def test_commands_and_score(tmp_path: Path):
    ours = our_card(zoo_card(), uploaded(tmp_path / "pole"))
    assert "rl_zoo3" not in ours
    assert 'pip install "sb3-reinforce[zoo]"' in ours
    assert "Return: 336.6 +- 75.5 over 10 deterministic episodes." in ours
    assert [line for line in ours.splitlines() if line.startswith("sb3-reinforce ")] == [
        "sb3-reinforce pull --algo reinforce --env CartPole-v1 -orga me -f logs/ -name pole",
        "sb3-reinforce enjoy --algo reinforce --env CartPole-v1 -f logs/",
        "sb3-reinforce train --algo reinforce --env CartPole-v1 -f logs/ --seed 1 -n 2000",
        "sb3-reinforce push --algo reinforce --env CartPole-v1 -f logs/ -orga me -name pole",
    ]
    assert ours.count("```") == 8  # install, play, train, hyperparameters


WORDS = ["--seed", "1", "-n", "2000"]


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({}, WORDS),
        ({"n_timesteps": -1}, WORDS[:2]),  # those of the config
        ({"hyperparams": {"baseline": "none", "gamma": 0.5}}, [*WORDS, "-params", "baseline:'none'", "gamma:0.5"]),
        # a config that others do not have: all that it said
        (
            {"env_kwargs": {"g": 2}, "conf_file": "my.yml"},
            [*WORDS, "--env-kwargs", "g:2", "-params", "gamma:0.9", "policy:'MlpPolicy'"],
        ),
    ],
)
def test_training_is_the_command_as_it_was_given(arguments: dict, words: list[str], tmp_path: Path):
    assert shlex.split(as_trained(uploaded(tmp_path / "pole", **arguments))) == words


@pytest.mark.parametrize(
    "others, shown", [({}, ""), ({"a": 1}, "{'a': 1}"), ({"z": 1}, "{'z': 1}"), ({"a": 1, "z": 2}, "{'a': 1, 'z': 2}")]
)
def test_what_the_video_needs_is_no_argument_of_the_environment(others: dict, shown: str, tmp_path: Path):
    text = zoo_card(**others, render_mode="rgb_array")
    assert "'render_mode': 'rgb_array'" in text, "RL Zoo adds it no more: delete what takes it out"
    ours = our_card(text, uploaded(tmp_path / "pole"))
    assert "render_mode" not in ours
    assert ("# Environment Arguments" in ours) == bool(others)
    assert shown in ours
