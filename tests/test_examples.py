"""The examples as they stand: each runs, keeps its promise and stays short."""

import math
import runpy
from itertools import permutations
from pathlib import Path

import pytest
import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_reinforce import TrainingCheckpoint
from sb3_reinforce.running.checkpoint_file import checkpoints_in
from tests.envs import RewardListEnv

EXAMPLES = Path(__file__).parent.parent / "examples"


def example(name):
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))


SHORT = {"log_derivative_trick": 40, "f1_classifier": 59, "bernoulli_latents": 59, "rastrigin": 59, "arithmetic": 59}
SHORT |= {"reward_weighted_regression": 40, "recurrent": 40, "action_masks": 45, "pong_from_pixels": 59}


@pytest.mark.parametrize(("name", "lines"), SHORT.items())
def test_examples_are_short(name, lines):
    assert len((EXAMPLES / f"{name}.py").read_text().splitlines()) <= lines


def test_log_derivative_trick(monkeypatch, tmp_path, capsys):
    pytest.importorskip("matplotlib").use("Agg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["log_derivative_trick.py"])
    result = example("log_derivative_trick")
    # E[f] = 4 + P(x > 1), x ~ N(0.5, 1): the density at 0.5
    assert result["exact"] == pytest.approx(math.exp(-0.125) / math.sqrt(2 * math.pi))
    assert (tmp_path / "log_derivative_trick.png").read_bytes().startswith(b"\x89PNG")
    *_, none, half, leave_one_out, _ = capsys.readouterr().out.splitlines()
    for line in (none, half, leave_one_out):
        # the mean of 5000 estimates, in standard errors
        mean, variance = (float(part.split()[-1]) for part in line.rsplit(":", 1)[1].split(","))
        assert abs(mean - result["exact"]) < 4 * math.sqrt(variance / 5000)
    variances = [float(line.split()[-1]) for line in (none, half, leave_one_out)]
    assert variances[0] > 3 * variances[1] > 9 * variances[2]
    assert result["gradient"].item() == pytest.approx(result["exact"], abs=4 * math.sqrt(variances[2] / 5000))


def test_recurrent(capsys):
    """It runs; that it learns shows in 96,000 steps (docs/recurrent.md)."""
    pytest.importorskip("sb3_contrib")
    assert {*example("recurrent")["main"](n_steps=1)} == {"MlpLstmPolicy", "MlpPolicy"}
    out = capsys.readouterr().out
    assert "state: [(1, 8, 64), (1, 8, 64)]" in out
    assert "state: none" in out


def test_f1_classifier():
    """The margin over cross-entropy is 0.04 to 0.16 on seeds 0 to 5."""
    scores = example("f1_classifier")["main"]()
    assert scores["F1"] > scores["cross-entropy"] + 0.03


def test_bernoulli_latents():
    """58 components within 4 standard errors; then within 0.5 of the likelihood that bounds the training."""
    worst, start, end, bound = example("bernoulli_latents")["main"](n_updates=600)
    assert worst < 4
    assert bound < end < bound + 0.5 < start


def test_rastrigin():
    """The next best local minima have f = 1; seeds 0 to 7 all end below 0.07."""
    start, end = example("rastrigin")["main"]()
    assert 0 <= end < 0.1 < 50 < start


def test_arithmetic_runs(capsys):
    assert 0 <= example("arithmetic")["main"](n_updates=4) <= 1
    assert capsys.readouterr().out.count("right;") == 5


@pytest.mark.slow
def test_arithmetic():
    """The share of right texts on seeds 0 to 2 after 300 updates: 0.90, 0.98, 0.997."""
    assert example("arithmetic")["main"]() > 0.5


def test_reward_weighted_regression(tmp_path):
    """Learns CartPole-v1 from some 20 to above 100; saves, loads, and resumes bit for bit, as everything on its base class."""
    algorithm = example("reward_weighted_regression")["RewardWeightedRegression"]
    arguments = dict(n_steps=256, seed=0, device="cpu", policy_kwargs=dict(net_arch=[32]))
    model = algorithm("MlpPolicy", make_vec_env("CartPole-v1", 4), **arguments)
    model.learn(20_000, callback=TrainingCheckpoint(tmp_path / "run", every_n_updates=4, keep=100))
    returns = evaluate_policy(model, make_vec_env("CartPole-v1", seed=1), 20, deterministic=False)[0]
    assert returns > 100

    model.save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model", device="cpu")
    assert th.equal(loaded.policy.action_net.weight, model.policy.action_net.weight)
    middle = checkpoints_in(tmp_path / "run")[1]
    resumed = algorithm.resume(middle, make_vec_env("CartPole-v1", 4))
    resumed.learn(20_000 - resumed.num_timesteps, reset_num_timesteps=False)
    assert th.equal(resumed.policy.action_net.weight, model.policy.action_net.weight)


def test_action_masks():
    """The tour that is learned is the shortest of all 7! tours."""
    tour = example("action_masks")
    distances = tour["DISTANCES"]
    tours = [(0, *rest, 0) for rest in permutations(range(1, 8))]
    shortest = min(distances[cities[:-1], cities[1:]].sum() for cities in tours)
    assert tour["main"]() == pytest.approx(shortest)
    assert shortest == pytest.approx(2.579, abs=5e-4)  # as it says


def test_what_a_subclass_finds_in_its_rollout():
    """Whole episodes laid end to end, their lengths, and the checks of the base class."""
    algorithm = example("reward_weighted_regression")["RewardWeightedRegression"]
    env = DummyVecEnv([lambda: RewardListEnv([1.0] * 3)])
    model = algorithm("MlpPolicy", env, n_episodes=2, gamma=1.0, seed=0, device="cpu").learn(1)
    assert model.rollout.lengths.tolist() == [3, 3]
    assert model.rollout_buffer.rewards[:, 0].tolist() == [1.0] * 6
    assert model.rollout_buffer.episode_starts[:, 0].tolist() == [1, 0, 0, 1, 0, 0]
    with pytest.raises(ValueError, match="n_episodes must be a multiple of the number of environments"):
        algorithm("MlpPolicy", make_vec_env("CartPole-v1", 2), n_episodes=3)


def test_pong_from_pixels_resumes_bit_for_bit(tmp_path):
    """Two updates of one game each, in one run and in two."""
    main = example("pong_from_pixels")["main"]
    whole, part = tmp_path / "whole", tmp_path / "part"
    # A game has at least 21 points of 35 steps.
    model = main(whole, seed=1, steps=main(part, seed=1, steps=1, n_episodes=1).num_timesteps + 1, n_episodes=1)
    resumed = main(part, steps=model.num_timesteps, n_episodes=1)
    assert resumed.num_timesteps == model.num_timesteps > 2 * 21 * 35
    assert th.equal(resumed.policy.mlp_extractor.policy_net[0].weight, model.policy.mlp_extractor.policy_net[0].weight)
    assert len((part / "progress.csv").read_text().splitlines()) == 3
    # what moves is all that is seen: nothing does in the first observation of a game
    observations = model.rollout_buffer.observations
    assert not observations[0].any()
    assert observations[1].any()
    assert -21 <= model.ep_info_buffer[-1]["r"] <= 21


def test_the_return_of_pong_starts_anew_at_each_point():
    algorithm = example("pong_from_pixels")["PointByPoint"]
    env = DummyVecEnv([lambda: RewardListEnv([0.0, -1.0, 0.0, 0.0, 1.0, 0.0])])
    model = algorithm("MlpPolicy", env, n_episodes=2, gamma=0.5, baseline="none", seed=0, device="cpu").learn(1)
    assert model.batch.episodes.returns.tolist() == 2 * [-0.5, -1.0, 0.25, 0.5, 1.0, 0.0]
    assert model.rollout.lengths.tolist() == [6, 6]  # an episode is still a game
