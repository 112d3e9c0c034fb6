"""
Whole episodes through an LSTM with the present parameters: the state is zero where an episode starts, and nothing is cut.

The episodes are padded and sorted by length. So that padding costs little, they are read in spans of time: one ends where
half of the episodes that it began with have ended, and the next goes on with those that have not.
"""

from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.policies import BasePolicy
from torch import nn

from sb3_reinforce.rollout.extractor import actor_features
from sb3_reinforce.update.steps import Sequences, Steps


def outputs_of(lstm: nn.LSTM, inputs: th.Tensor, sequences: Sequences) -> th.Tensor:
    """
    :param inputs: of S steps, the episodes laid end to end, shape [S, input size]
    :param sequences: these episodes, and whether the gradient is cut
    :return: the outputs of the last layer, shape [S, hidden size]
    """
    lengths = np.asarray(sequences.lengths)
    order = np.argsort(-lengths, kind="stable")
    starts, lengths = (np.cumsum(lengths) - lengths)[order], lengths[order]
    place = np.empty(len(inputs), dtype=np.int64)  # of each step in the padded outputs
    padded: list[th.Tensor] = []
    n_padded = begin = 0
    states: Any = None
    # cuDNN has no backward pass in evaluation mode, and no second derivative for the Fisher information.
    with th.backends.cudnn.flags(enabled=lstm.training or not th.is_grad_enabled()):
        while alive := int(np.count_nonzero(lengths > begin)):
            end, cut = int(lengths[alive // 2]), sequences.bptt_steps
            if cut is not None:
                end = min(end, begin // cut * cut + cut)
            steps = np.arange(begin, end)[:, None]
            rows = starts[:alive] + np.minimum(steps, lengths[:alive] - 1)  # [end - begin, alive]
            is_step = steps < lengths[:alive]
            place[rows[is_step]] = n_padded + np.flatnonzero(is_step)
            if states is not None:
                states = tuple(state[:, :alive].contiguous() for state in states)
                if cut is not None and begin % cut == 0:
                    states = tuple(state.detach() for state in states)
            output, states = lstm(inputs[th.as_tensor(rows, device=inputs.device)], states)
            padded.append(output.flatten(0, 1))
            n_padded, begin = n_padded + rows.size, end
    return th.cat(padded)[th.as_tensor(place, device=inputs.device)]


def distribution_of_sequences(policy: Any, steps: Steps) -> Any:
    """:return: pi(.|history) of each step, as the ``get_distribution`` of sb3-contrib's recurrent policies"""
    assert steps.sequences is not None, "given for a policy with memory"
    latent = outputs_of(policy.lstm_actor, actor_features(policy, steps.observations), steps.sequences)
    return policy._get_action_dist_from_latent(policy.mlp_extractor.forward_actor(latent))


def values_of_sequences(policy: Any, steps: Steps) -> th.Tensor:
    """:return: V(history) of each step, shape [n], as the ``predict_values`` of sb3-contrib's recurrent policies"""
    assert steps.sequences is not None, "given for a policy with memory"
    features = BasePolicy.extract_features(policy, steps.observations, policy.vf_features_extractor)
    if policy.lstm_critic is not None:
        latent = outputs_of(policy.lstm_critic, features, steps.sequences)
    elif policy.shared_lstm:  # V has no part in the gradient of the actor's LSTM
        with th.no_grad():
            latent = outputs_of(policy.lstm_actor, features, steps.sequences)
    else:
        latent = policy.critic(features)
    return policy.value_net(policy.mlp_extractor.forward_critic(latent)).flatten()  # type: ignore[no-any-return]
