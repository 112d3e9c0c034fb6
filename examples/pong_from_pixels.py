"""
Pong from pixels in Karpathy's setting (2016); docs/pong.md has the curve. The same command resumes a run that was stopped:

    torchrun --nproc-per-node 2 examples/pong_from_pixels.py --folder pong --seed 0
"""

import argparse
import dataclasses
import time

import cv2
import gymnasium as gym
import numpy as np
from gymnasium.wrappers import FrameStackObservation, TransformAction, TransformObservation
from stable_baselines3.common.env_util import make_vec_env

from sb3_reinforce import REINFORCE, TrainingCheckpoint
from sb3_reinforce.running.logs import appending_logger


def court(frame):
    return cv2.resize(frame[34:194], (40, 40), interpolation=cv2.INTER_AREA).ravel() / np.float32(25)


def motion(env):
    """Observes the difference of two frames, 40x40 pixels of the court; the actions are up and down."""
    pixels = gym.spaces.Box(-10.2, 10.2, (1600,), np.float32)
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
    game = dict(obs_type="grayscale", frameskip=4, repeat_action_probability=0.0)
    env, checkpoint = make_vec_env("ale_py:ALE/Pong-v5", 1, wrapper_class=motion, env_kwargs=game), TrainingCheckpoint(folder)
    given = dict(n_episodes=2, n_epochs=4, batch_size=256, learning_rate=5e-4, ent_coef=0.01, baseline="none", seed=seed)
    given |= dict(normalize_advantage=True, policy_kwargs=dict(net_arch=dict(pi=[200], vf=[]))) | settings
    model = PointByPoint.resume(folder, env) if checkpoint.can_resume() else PointByPoint("MlpPolicy", env, **given)
    model.set_logger(appending_logger(folder, ["csv"]))
    return model.learn(steps - model.num_timesteps, callback=checkpoint, reset_num_timesteps=model.num_timesteps == 0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", default="pong")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=20_000_000)
    main(**vars(parser.parse_args()))
