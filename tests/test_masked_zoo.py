"""RL Zoo's commands, and W&B's videos, with environments that raise at a forbidden action."""

from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_reinforce import REINFORCE
from sb3_reinforce.tracking.media import record_episode
from tests.masked_envs import Strict, strict

pytest.importorskip("sb3_contrib")


@pytest.mark.parametrize("source", ["method", "info"])
def test_train_resume_and_enjoy(source, tmp_path, monkeypatch):
    """Evaluations while training, a resumed run, and the trained model: none of them is given masks."""
    pytest.importorskip("rl_zoo3")
    from sb3_reinforce.zoo import cli

    monkeypatch.chdir(tmp_path)
    gym.register("Strict-v0", lambda **kwargs: Strict(source))
    try:
        policy = "MaskableMlpPolicy" if source == "info" else "MaskableMlpLstmPolicy"
        settings = ["-params", f"policy:'{policy}'", "n_steps:16", "policy_kwargs:dict(net_arch=[4])"]
        short = ["--eval-freq", "40", "--eval-episodes", "2", "--vec-env", "dummy"]
        assert cli.main(["train", "--env", "Strict-v0", "-n", "100", *short, *settings]) == 0
        assert cli.main(["train", "--resume", "logs/reinforce/Strict-v0_1", "-n", "200", "--eval-final", "2"]) == 0
        assert cli.main(["enjoy", "--env", "Strict-v0", "-n", "40", "--no-render"]) == 0
    finally:
        del gym.registry["Strict-v0"]
    assert REINFORCE.load(Path("logs/reinforce/Strict-v0_1/Strict-v0.zip"), device="cpu").num_timesteps >= 200


def test_videos():
    class Filmed(Strict):
        render_mode = "rgb_array"

        def render(self):
            return np.zeros((2, 2, 3), np.uint8)

    for source in ("method", "info"):
        model = REINFORCE("MaskableMlpPolicy", strict(source), n_steps=8, seed=0, device="cpu")
        env = DummyVecEnv([lambda source=source: Filmed(source)])
        for _ in range(4):
            frames, *_ = record_episode(model, env)
        assert frames.shape[1:] == (3, 2, 2)
