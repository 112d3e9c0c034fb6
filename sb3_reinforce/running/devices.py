"""Which device ``device="auto"`` is: a GPU pays for convolutions alone."""

import torch as th
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from torch import nn

from sb3_reinforce.running import ranks


def has_convolutions(policy: nn.Module) -> bool:
    """:return: whether any part of the policy is a convolution"""
    return any(isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) for module in policy.modules())


def move_to_best_device(model: OnPolicyAlgorithm) -> None:
    """
    Move a model on the CPU to a GPU, if there is one and the policy has convolutions.

    Layers as small as those of an MLP take longer on a GPU: each step of an environment waits for it. SB3 recommends the CPU
    for them, too (its issue 1245).
    """
    if not th.cuda.is_available() or not has_convolutions(model.policy):
        return
    model.device = th.device(ranks.own_gpu())
    model.policy = model.policy.to(model.device)
    model.rollout_buffer.device = model.device
    model.set_random_seed(model.seed)  # once more: it makes cuDNN deterministic, too
    if model.verbose >= 1:
        print(f"Using {model.device} device for the policy's convolutions")
