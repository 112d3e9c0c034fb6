"""Arguments of A2C and PPO that REINFORCE does not have."""

import inspect

import pytest
from stable_baselines3 import A2C, PPO

from sb3_reinforce import REINFORCE
from sb3_reinforce.migration import INSTEAD


def test_each_is_explained():
    """Each argument of theirs is one of ours or has its explanation, which names only arguments of ours."""
    own = set(inspect.signature(REINFORCE).parameters)
    assert {*inspect.signature(A2C).parameters, *inspect.signature(PPO).parameters} - own <= set(INSTEAD)
    assert not own & set(INSTEAD)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(gae_lambda=0.95), r"^REINFORCE has no argument 'gae_lambda': the return is Monte-Carlo, so leave it out; unfin"),
        (dict(vf_coef=0.5), "no argument 'vf_coef': .* give value_learning_rate and n_value_epochs"),
        (dict(use_rms_prop=False), r"no argument 'use_rms_prop': .* policy_kwargs=dict\(optimizer_class="),
        (dict(clip_range_vf=None), "no argument 'clip_range_vf': the fit of the value network is not clipped"),
        (dict(n_step=5), "unexpected keyword argument 'n_step'"),  # Python's own words
    ],
)
def test_the_type_error_says_what_to_give_instead(kwargs, message):
    with pytest.raises(TypeError, match=message):
        REINFORCE("MlpPolicy", "CartPole-v1", **kwargs)


def test_a_subclass_may_have_them():
    class Mine(REINFORCE):
        def __init__(self, *args, vf_coef=0.5, **kwargs):
            super().__init__(*args, **kwargs)
            self.vf_coef = vf_coef

    assert Mine("MlpPolicy", "CartPole-v1", vf_coef=0.3).vf_coef == 0.3
    with pytest.raises(TypeError, match=r"^Mine has no argument 'gae_lambda'"):
        Mine("MlpPolicy", "CartPole-v1", gae_lambda=1.0)
