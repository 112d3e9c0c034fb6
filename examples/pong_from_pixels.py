"""
Pong from pixels in Karpathy's setting (2016); docs/pong.md has the curve. The same command resumes a run that was stopped:

    torchrun --nproc-per-node 2 examples/pong_from_pixels.py --folder pong --seed 0
"""

import argparse
import dataclasses
import time

import ale_py
import cv2
import gymnasium as gym
import numpy as np
from gymnasium.wrappers import FrameStackObservation, TransformAction, TransformObservation
from stable_baselines3.common.env_util import make_vec_env

from sb3_reinforce import REINFORCE, TrainingCheckpoint
from sb3_reinforce.running.logs import appending_logger


def court(frame):
    return cv2.resize(frame[34:194], (40, 40), interpolation=cv2.INTER_AREA).ravel() / np.float32(255)


def movement(env):
    """Observes the difference of two frames, 40x40 pixels of the court; the actions are up and down."""
    pixels = gym.spaces.Box(-1, 1, (1600,), np.float32)
    env = FrameStackObservation(TransformObservation(env, court, pixels), 2)
    env = TransformObservation(env, lambda frames: frames[1] - frames[0], pixels)
    return TransformAction(env, lambda action: 2 + action, gym.spaces.Discrete(2))


class PointByPoint(REINFORCE):
    """An episode is a game; the discounted return starts anew at each point."""

    def _evaluate_rollout(self, rollout, sampler, callback):
        self.logger.record("time/cpu_seconds", time.process_time())  # of this process
        ends = np.union1d(np.flatnonzero(rollout.buffer.rewards[:, 0]) + 1, rollout.lengths.cumsum(0))
        points = np.zeros(len(ends), rollout.episodes.dtype)
        points["start"][1:], points["end"] = ends[:-1], ends
        return super()._evaluate_rollout(dataclasses.replace(rollout, episodes=points), sampler, callback)


def main(folder="pong", seed=0, steps=20_000_000, **settings):
    gym.register_envs(ale_py)
    game = dict(obs_type="grayscale", frameskip=4, repeat_action_probability=0.0)
    env, checkpoint = make_vec_env("ALE/Pong-v5", 1, wrapper_class=movement, env_kwargs=game), TrainingCheckpoint(folder)
    given = dict(n_episodes=4, n_epochs=4, batch_size=512, learning_rate=5e-4, baseline="none", normalize_advantage=True)
    settings = given | dict(policy_kwargs=dict(net_arch=dict(pi=[200], vf=[])), seed=seed) | settings
    resumed = checkpoint.can_resume()
    model = PointByPoint.resume(folder, env) if resumed else PointByPoint("MlpPolicy", env, **settings)
    model.set_logger(appending_logger(folder, ["csv"]))
    return model.learn(steps - model.num_timesteps, callback=checkpoint, reset_num_timesteps=not resumed)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    for name, default in (("folder", "pong"), ("seed", 0), ("steps", 20_000_000)):
        parser.add_argument(f"--{name}", type=type(default), default=default)
    main(**vars(parser.parse_args()))
