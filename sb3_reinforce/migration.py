"""What becomes of the arguments of A2C, PPO and TRPO that REINFORCE does not have."""

import functools
import inspect
from collections.abc import Callable
from typing import ParamSpec

P = ParamSpec("P")

_HALVED = "with natural_gradient=True a step of more than 1.5 times target_kl is halved until it is not"
#: by name, what to give instead
INSTEAD = {
    "gae_lambda": "the return is Monte-Carlo, so leave it out; unfinished='bootstrap', truncation='bootstrap', "
    "loss_reduction='step' is A2C with gae_lambda=1",
    "vf_coef": "the value network has an optimiser of its own: give value_learning_rate and n_value_epochs",
    "clip_range_vf": "the fit of the value network is not clipped: give value_learning_rate and n_value_epochs",
    "use_rms_prop": "the optimiser is Adam; for another give policy_kwargs=dict(optimizer_class=...)",
    "rms_prop_eps": "give policy_kwargs=dict(optimizer_class=..., optimizer_kwargs=dict(eps=...))",
    "n_critic_updates": "give n_value_epochs",
    "line_search_shrinking_factor": _HALVED,
    "line_search_max_iter": _HALVED,
    "sub_sampling_factor": "the Fisher information is that of the whole batch; chunk_size bounds the memory",
}


def explains_missing_arguments(init: Callable[P, None]) -> Callable[P, None]:
    """
    A constructor's decorator.

    :return: the constructor, whose TypeError for an argument of :data:`INSTEAD` says what to give instead
    """
    own = inspect.signature(init).parameters

    @functools.wraps(init)
    def explained(*args: P.args, **kwargs: P.kwargs) -> None:
        for name in kwargs:
            if name in INSTEAD and name not in own:
                raise TypeError(f"{type(args[0]).__name__} has no argument {name!r}: {INSTEAD[name]}")
        init(*args, **kwargs)

    return explained
