"""
Rewards to returns, for episodes of unequal length laid end to end.

S is the number of steps of all episodes together, N the number of episodes. Step arrays have shape [S], episode by
episode and in order of time, without padding; ``lengths`` [N] tells where each episode ends.
"""

import torch as th


def steps_in_episode(lengths: th.Tensor) -> th.Tensor:
    """
    The time index t = 0, 1, ... of each step within its episode.

    :param lengths: steps of each episode, shape [N]
    :return: t, shape [S]
    """
    starts = lengths.cumsum(0) - lengths
    return th.arange(int(lengths.sum())) - starts.repeat_interleave(lengths)


def reward_to_go(rewards: th.Tensor, lengths: th.Tensor, gamma: float, last_values: th.Tensor | None = None) -> th.Tensor:
    """
    R_t = sum_{k>=t} gamma^(k-t) r_k, to the end of the episode.

    ``last_values`` bootstrap: the last return is R_{T-1} = r_{T-1} + gamma * V(s_T), with V = 0 for an episode that has
    terminated. Source: Williams (1992); Sutton and Barto (2018), section 13.3.

    Sums all episodes at once by recursive doubling: if R_t holds 2^j rewards, R_t + gamma^(2^j) R_{t+2^j} holds 2^(j+1).
    This takes ceil(log2(longest episode)) array operations, and has the rounding error of pairwise summation.

    :param rewards: shape [S]
    :param lengths: steps of each episode, shape [N]
    :param gamma: discount factor per step, in [0, 1]
    :param last_values: V of the state after each episode's last step, in units of return, shape [N]
    :return: R_t, shape [S], dtype of ``rewards``
    :raises ValueError: if the shapes do not fit together
    """
    _check_lengths(rewards, lengths)
    returns = rewards.clone()
    if returns.numel() == 0:
        return returns
    ends = lengths.cumsum(0)
    if last_values is not None:
        if last_values.shape != lengths.shape:
            raise ValueError(
                f"last_values must have one value per episode, shape {tuple(lengths.shape)}, "
                f"got shape {tuple(last_values.shape)}"
            )
        returns[ends - 1] += gamma * last_values.to(returns.dtype)
    steps_left = ends.repeat_interleave(lengths) - th.arange(returns.shape[0])
    span, power, longest = 1, gamma, int(lengths.max())
    while span < longest:
        returns[:-span] += th.where(steps_left[:-span] > span, power * returns[span:], 0.0)
        span, power = 2 * span, power * power
    return returns


def episode_return(rewards: th.Tensor, lengths: th.Tensor, gamma: float, last_values: th.Tensor | None = None) -> th.Tensor:
    """
    R = sum_{k>=0} gamma^k r_k of the whole episode, the same for each of its steps.

    Source: Williams (1992), episodic REINFORCE.

    :param rewards: shape [S]
    :param lengths: steps of each episode, shape [N]
    :param gamma: discount factor per step, in [0, 1]
    :param last_values: as in :func:`reward_to_go`
    :return: R of each step's episode, shape [S], dtype of ``rewards``
    :raises ValueError: if the shapes do not fit together
    """
    returns = reward_to_go(rewards, lengths, gamma, last_values)
    return returns[lengths.cumsum(0) - lengths].repeat_interleave(lengths)


RETURNS = {"reward_to_go": reward_to_go, "episode": episode_return}
"""By the names of REINFORCE's argument ``returns``."""


def _check_lengths(rewards: th.Tensor, lengths: th.Tensor) -> None:
    if rewards.ndim != 1 or lengths.ndim != 1 or (lengths < 1).any() or int(lengths.sum()) != rewards.shape[0]:
        raise ValueError(
            "rewards [S] and lengths [N] must be one-dimensional, each length at least 1, and the lengths must add up "
            f"to S; got rewards of shape {tuple(rewards.shape)} and lengths {lengths.tolist()}"
        )
