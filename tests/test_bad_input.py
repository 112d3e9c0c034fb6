"""Bad input raises a ValueError at once: argument, rule, value received, cure."""

import io
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_reinforce import REINFORCE, Baseline
from tests.envs import RewardListEnv

VALUE_CURE = "needs a learned value function: choose baseline=\"value\", got baseline='none'"


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        # unknown names: the valid ones are listed
        (dict(baseline="critic"), "baseline must be one of 'none', 'mean', 'leave_one_out', .*got 'critic'"),
        (dict(baseline=None), "or a Baseline object, got None"),
        (dict(returns="gae"), "returns must be one of 'reward_to_go', 'episode', got 'gae'"),
        (dict(truncation="ignore"), "truncation must be one of 'terminal', 'bootstrap', None, got 'ignore'"),
        (dict(unfinished="cut"), "unfinished must be one of 'finish', 'bootstrap', got 'cut'"),
        (dict(loss_reduction="mean"), "loss_reduction must be one of 'episode', 'step', None, got 'mean'"),
        # numbers out of range, or of the wrong kind
        (dict(gamma=1.1), r"gamma must be a number in \[0, 1\], got 1.1"),
        (dict(gamma=-0.1), r"gamma must be a number in \[0, 1\], got -0.1"),
        (dict(gamma=float("nan")), r"gamma must be a number in \[0, 1\], got nan"),
        (dict(gamma="0.9"), r"gamma must be a number in \[0, 1\], got '0.9'"),
        (dict(n_steps=0), "n_steps must be a whole number >= 1, got 0"),
        (dict(n_steps=10.5), "n_steps must be a whole number >= 1, got 10.5"),
        (dict(n_steps=None), "n_steps must be a whole number >= 1, got None"),
        (dict(n_steps=True), "n_steps must be a whole number >= 1, got True"),
        (dict(n_episodes=0), "n_episodes must be a whole number >= 1 or None, got 0"),
        (dict(n_episodes="4"), "n_episodes must be a whole number >= 1 or None, got '4'"),
        (dict(n_epochs=0), "n_epochs must be a whole number >= 1, got 0"),
        (dict(n_value_epochs=-1), "n_value_epochs must be a whole number >= 1, got -1"),
        (dict(batch_size=0), "batch_size must be a whole number >= 1 or None, got 0"),
        (dict(value_batch_size=0.5), "value_batch_size must be a whole number >= 1 or None, got 0.5"),
        (dict(chunk_size=-4), "chunk_size must be a whole number >= 1 or None, got -4"),
        (
            dict(freeze_normalization_after=0),
            "freeze_normalization_after must be a whole number >= 1 or None, got 0",
        ),
        (dict(max_episode_steps=0), "max_episode_steps must be a whole number >= 1, got 0"),
        (dict(clip_range=-0.2), "clip_range must be finite and >= 0 throughout training, got -0.2"),
        (dict(clip_range=0.0), "clip_range must be > 0 at the start of training, got 0.0"),
        (dict(max_grad_norm=0), "max_grad_norm must be a finite number > 0, or None to switch it off, got 0"),
        (dict(max_grad_norm="big"), "max_grad_norm must be a finite number > 0, or None to switch it off, got 'big'"),
        (dict(learning_rate=-1e-3), "learning_rate must be finite and >= 0 throughout training, got -0.001"),
        (dict(learning_rate="3e-4"), "learning_rate must be a number >= 0, .*write it as a number"),
        (dict(value_learning_rate="fast"), "value_learning_rate must be a number >= 0, .*got 'fast'"),
        (dict(ent_coef="auto"), "ent_coef must be a number >= 0, .*\"lin_3e-4\", got 'auto'"),
        (dict(ent_coef=-0.1), "ent_coef must be finite and >= 0 throughout training, got -0.1"),
        (dict(normalize_advantage="yes"), "normalize_advantage must be one of True, False, got 'yes'"),
        (dict(discount_state=2), "discount_state must be one of True, False, got 2"),
        (dict(seed=1.5), r"seed must be a whole number in \[0, 2\^32 - 1\] or None, got 1.5"),
        (dict(seed="0"), r"seed must be a whole number in \[0, 2\^32 - 1\] or None, got '0'"),
        (dict(seed=-1), r"seed must be a whole number in \[0, 2\^32 - 1\] or None, got -1"),
        (dict(stats_window_size=0), "stats_window_size must be a whole number >= 1, got 0"),
        # combinations
        (dict(truncation="bootstrap", baseline="none"), 'truncation="bootstrap" ' + VALUE_CURE),
        (dict(unfinished="bootstrap", baseline="none"), 'unfinished="bootstrap" ' + VALUE_CURE),
        (dict(truncation="bootstrap", returns="episode"), 'truncation="bootstrap" needs returns="reward_to_go"'),
        (dict(unfinished="bootstrap", returns="episode"), 'unfinished="bootstrap" needs returns="reward_to_go"'),
        (dict(unfinished="bootstrap", n_episodes=4), "excludes n_episodes, got n_episodes=4: leave one of them out"),
        (dict(discount_state=True, returns="episode"), 'discount_state=True is for returns="reward_to_go"'),
        (dict(baseline="leave_one_out"), "got n_envs=1: use n_episodes >= 2 instead of n_steps, or more environments"),
        (dict(baseline="per_step"), "got n_envs=1: use n_episodes >= 2 instead of n_steps, or more environments"),
        (dict(baseline="leave_one_out", n_episodes=1), "n_episodes must be >= 2, got 1"),
        (dict(baseline="optimal"), "got n_envs=1: use n_episodes >= 2 instead of n_steps, or more environments"),
        (dict(baseline="optimal", n_episodes=1), "n_episodes must be >= 2, got 1"),
        (dict(baseline="greedy"), "needs n_episodes equal to the number of environments, got n_episodes=None"),
        (dict(baseline="greedy", n_episodes=4), "got n_episodes=4 and n_envs=1: make them equal"),
    ],
)
def test_refused_at_construction(kwargs, message):
    with pytest.raises(ValueError, match=message):
        REINFORCE("MlpPolicy", "CartPole-v1", **kwargs)


def test_n_episodes_must_be_an_equal_quota():
    with pytest.raises(
        ValueError, match=r"n_episodes must be a multiple of the number of environments.*n_episodes=5 and n_envs=2"
    ):
        REINFORCE("MlpPolicy", make_vec_env("CartPole-v1", 2), n_episodes=5)


def test_what_is_refused_is_refused_before_the_environment_is_made():
    with pytest.raises(ValueError, match="gamma must be"):
        REINFORCE("MlpPolicy", "NoSuchEnvironment-v0", gamma=2)


class Plain(gym.Env):
    def __init__(self, observation_space, action_space):
        self.observation_space, self.action_space = observation_space, action_space


BOX = spaces.Box(-1, 1, (2,), np.float32)


@pytest.mark.parametrize(
    ("observation_space", "action_space", "message"),
    [
        (BOX, spaces.Dict(a=BOX), "action_space must be Box, Discrete, MultiDiscrete or MultiBinary, got Dict"),
        (BOX, spaces.Tuple([BOX, BOX]), "action_space must be Box, Discrete, MultiDiscrete or MultiBinary, got Tuple"),
        (BOX, spaces.Box(-np.inf, 1, (2,)), "action_space must have a finite lower and upper bound"),
        (BOX, spaces.Box(-5, 5, (1,), np.int64), "action_space must be of floats, which are what a Gaussian draws"),
        (BOX, spaces.MultiBinary((2, 2)), "action_space must have one axis"),
        (BOX, spaces.MultiDiscrete([[2, 2]]), "action_space must have one axis"),
        (BOX, spaces.Discrete(3, start=1), r"action_space must count from 0 \(start=0\), got Discrete"),
        (spaces.Discrete(3, start=-1), spaces.Discrete(2), r"observation_space must count from 0 \(start=0\)"),
        (spaces.Box(-1, 1, ()), spaces.Discrete(2), "observation_space must have at least one axis"),
        (spaces.Text(3), spaces.Discrete(2), "observation_space must be Box.*or a Dict of them, got Text"),
        (spaces.Tuple([BOX]), spaces.Discrete(2), "observation_space must be Box.*or a Dict of them, got Tuple"),
        (spaces.Dict(a=spaces.Text(3)), spaces.Discrete(2), "observation_space must be Box.*or a Dict of them, got Dict"),
        (spaces.Dict(a=spaces.Dict(b=BOX)), spaces.Discrete(2), "observation_space must not be nested"),
    ],
)
def test_unsupported_spaces(observation_space, action_space, message):
    with pytest.raises(ValueError, match=message) as caught:
        REINFORCE("MlpPolicy", Plain(observation_space, action_space))
    # SB3's own types, which code written for A2C may expect
    assert isinstance(caught.value, AssertionError)
    assert isinstance(caught.value, NotImplementedError)


def test_a_clip_range_of_zero_plays_but_does_not_train(tmp_path):
    REINFORCE("MlpPolicy", "CartPole-v1").save(tmp_path / "model.zip")
    env = make_vec_env("CartPole-v1")
    # as RL Zoo's enjoy loads a model
    objects = {"learning_rate": 0.0, "lr_schedule": lambda _: 0.0, "clip_range": lambda _: 0.0}
    model = REINFORCE.load(tmp_path / "model.zip", env=env, custom_objects=objects, seed=0)
    assert model.predict(env.reset())[0] in (0, 1)
    with pytest.raises(ValueError, match="clip_range must be > 0 at the start of training, got <function"):
        model.learn(10)


def test_no_environment(tmp_path):
    with pytest.raises(ValueError, match="env must be an environment or the id of one, got None"):
        REINFORCE("MlpPolicy", None)
    REINFORCE("MlpPolicy", "CartPole-v1").save(tmp_path / "model.zip")
    with pytest.raises(ValueError, match="env must be given before training, got None: set_env"):
        REINFORCE.load(tmp_path / "model.zip").learn(1)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(unfinished="bootstrap"), "needs a learned value function"),
        (dict(returns="gae"), "returns must be one of"),
        (dict(n_epochs=0), "n_epochs must be a whole number"),
        (dict(gamma=5), "gamma must be a number in"),
    ],
)
def test_what_load_and_assignment_bring_is_checked_too(tmp_path, kwargs, message):
    model = REINFORCE("MlpPolicy", "CartPole-v1", baseline="none")
    model.save(tmp_path / "model.zip")
    with pytest.raises(ValueError, match=message):
        REINFORCE.load(tmp_path / "model.zip", **kwargs)
    for name, value in kwargs.items():
        setattr(model, name, value)
    with pytest.raises(ValueError, match=message):
        model.learn(1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((float("nan"),), "total_timesteps must be a finite number, got nan"),
        (("1000",), "total_timesteps must be a finite number, got '1000'"),
        ((1, None, 0), "log_interval must be a whole number >= 1 or None, got 0"),
        ((1, None, -1), "log_interval must be a whole number >= 1 or None, got -1"),
    ],
)
def test_refused_by_learn(arguments, message):
    model = REINFORCE("MlpPolicy", "CartPole-v1")
    with pytest.raises(ValueError, match=message):
        model.learn(*arguments)
    assert model.num_timesteps == 0


def test_another_baseline_needs_another_model():
    model = REINFORCE("MlpPolicy", "CartPole-v1", n_steps=8).learn(1)
    model.baseline = "none"
    with pytest.raises(ValueError, match="baseline must stay the one that the model was made with, ValueBaseline, got 'none'"):
        model.learn(1)


def test_monitor_that_forbids_early_resets():
    env = DummyVecEnv([lambda: Monitor(gym.make("CartPole-v1"), allow_early_resets=False)])
    with pytest.raises(ValueError, match=r"Monitor\(allow_early_resets\) must be True.*leave the argument out"):
        REINFORCE("MlpPolicy", env)
    REINFORCE("MlpPolicy", env, unfinished="bootstrap")  # never resets early


class Endless(RewardListEnv):
    def __init__(self):
        super().__init__([0.0])

    def step(self, action):
        return self._observation(), 0.0, False, False, {}


def test_an_episode_that_never_ends():
    env = DummyVecEnv([lambda: RewardListEnv([1.0]), Endless])
    model = REINFORCE("MlpPolicy", env, max_episode_steps=50)
    with pytest.raises(
        ValueError, match=r"within max_episode_steps=50 steps, environment 1 has played 51: .*TimeLimit.*unfinished"
    ):
        model.learn(10_000)
    REINFORCE("MlpPolicy", env, max_episode_steps=50, unfinished="bootstrap", n_steps=80).learn(300)


class Broken(RewardListEnv):
    """Reward or observation of step 3 is not finite."""

    def __init__(self, what: str, value: float):
        super().__init__([1.0] * 6)
        self.what, self.value = what, value

    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        if self.t == 3:
            observation, reward = (observation, self.value) if self.what == "reward" else (observation * self.value, reward)
        return observation, reward, terminated, truncated, info


@contextmanager
def parameters_stay(model: REINFORCE) -> Iterator[None]:
    """The block leaves the policy's parameters as they were."""
    before = [parameter.detach().clone() for parameter in model.policy.parameters()]
    yield
    assert all(th.equal(a, b) for a, b in zip(before, model.policy.parameters(), strict=True))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(("what", "step"), [("reward", 2), ("observation", 3)])
@pytest.mark.parametrize("policy_kwargs", [None, dict(activation_fn=th.nn.Softplus)], ids=["numpy", "torch"])
def test_not_finite(what, step, value, policy_kwargs):
    """The third step's reward is that of action 2; its observation is the one that action 3 is taken on."""
    env = DummyVecEnv([lambda: RewardListEnv([1.0] * 6), lambda: Broken(what, value)])
    model = REINFORCE("MlpPolicy", env, n_steps=12, policy_kwargs=policy_kwargs)
    message = f"{what} must be finite, got {value} from environment 1 at step {step} of the rollout"
    with parameters_stay(model), pytest.raises(ValueError, match=message):
        model.learn(100)


def test_not_finite_behind_a_time_limit():
    class BrokenEnd(RewardListEnv):
        def step(self, action):
            observation, *rest = super().step(action)
            return (observation * (float("nan") if self.t == 4 else 1.0), *rest)

    env = DummyVecEnv([lambda: RewardListEnv([1.0] * 4, truncated=True), lambda: BrokenEnd([1.0] * 4, truncated=True)])
    with pytest.raises(ValueError, match="terminal observation must be finite, got nan from environment 1 at step 4 of"):
        REINFORCE("MlpPolicy", env, n_steps=4, truncation="bootstrap").learn(1)


def test_not_finite_in_a_dict_observation():
    class DictEnv(Broken):
        observation_space = spaces.Dict(a=spaces.Discrete(2), b=spaces.Box(-np.inf, np.inf, (2,), np.float32))

        def reset(self, **kwargs):
            observation, info = super().reset(**kwargs)
            return {"a": 0, "b": observation}, info

        def step(self, action):
            observation, *rest = super().step(action)
            return ({"a": 1, "b": observation}, *rest)

    env = DummyVecEnv([lambda: DictEnv("observation", float("nan"))])
    with pytest.raises(ValueError, match="observation 'b' must be finite, got nan from environment 0 at step 3"):
        REINFORCE("MultiInputPolicy", env, n_steps=12).learn(100)


@pytest.mark.parametrize("kwargs", [{}, dict(n_epochs=3, batch_size=8)])
@pytest.mark.parametrize("how", ["parameter", "gradient"])
def test_an_update_that_is_not_finite_leaves_the_last_good_parameters(how, kwargs):
    env = DummyVecEnv([lambda: RewardListEnv([1e30 if how == "gradient" else 1e4] * 6)])
    policy_kwargs = dict(optimizer_class=th.optim.SGD, net_arch=[8])
    model = REINFORCE(
        "MlpPolicy", env, n_steps=12, gamma=1.0, baseline="none", max_grad_norm=None, policy_kwargs=policy_kwargs,
        learning_rate=1e38 if how == "parameter" else 1.0, **kwargs,
    )  # fmt: skip
    message = "update 1 must give finite numbers, and the parameters from before it were put back: .*lower learning_rate"
    with parameters_stay(model), pytest.raises(ValueError, match=message):
        model.learn(1)
    assert model._n_updates == 0


def test_finite_parameters_that_give_no_distribution():
    """After a huge step the parameters are finite, but torch refuses their standard deviation when log pi is computed."""
    model = REINFORCE("MlpPolicy", "Pendulum-v1", n_steps=200, learning_rate=1e10, seed=0)
    with parameters_stay(model), pytest.raises(ValueError, match=r"update 1 must give finite numbers.*lower learning_rate"):
        model.learn(1)
    assert model._n_updates == 0


def test_a_value_fit_that_diverges():
    policy_kwargs = dict(optimizer_class=th.optim.SGD)
    model = REINFORCE("MlpPolicy", "CartPole-v1", n_steps=32, value_learning_rate=1e30, policy_kwargs=policy_kwargs)
    message = r"loss of the value network is (inf|nan); lower .* or value_learning_rate \(now 1e\+30\)"
    with parameters_stay(model), pytest.raises(ValueError, match=message):
        model.learn(1)


def test_an_error_of_the_users_policy_keeps_its_words_and_the_parameters():
    model = REINFORCE("MlpPolicy", "CartPole-v1", n_steps=32, baseline="none", n_epochs=2, batch_size=20)
    evaluate, calls = model.policy.evaluate_actions, []

    def fails_later(*args):
        calls.append(1)
        if len(calls) == 3:
            raise ValueError("my own bug")
        return evaluate(*args)

    model.policy.evaluate_actions = fails_later
    with parameters_stay(model), pytest.raises(ValueError, match=r"^my own bug$"):
        model.learn(1)


def test_log_probabilities_of_another_shape():
    model = REINFORCE("MlpPolicy", "CartPole-v1", n_steps=8, baseline="none")
    evaluate = model.policy.evaluate_actions
    model.policy.evaluate_actions = lambda *args: [t.reshape(-1, 1) for t in evaluate(*args)]
    with pytest.raises(TypeError, match=r"one log-probability per action, shape \((\d+),\), got shape \(\1, 1\)"):
        model.learn(1)


class Bad(Baseline):
    def __init__(self, predicted):
        self.predicted = predicted

    def predict(self, episodes):
        return self.predicted(episodes)


@pytest.mark.parametrize(
    ("predicted", "message"),
    [
        (lambda e: th.zeros(3), r"Bad.predict must return a tensor of shape \(\d+,\), one b per step, got \(3,\)"),
        (lambda e: 0.0, "one b per step, got float"),
        (lambda e: th.zeros_like(e.returns).requires_grad_(), r"without gradient.*return b.detach\(\)"),
        (lambda e: e.returns * float("nan"), "must return finite numbers, got nan"),
    ],
)
def test_baseline_of_the_user(predicted, message):
    with pytest.raises(ValueError, match=message):
        REINFORCE("MlpPolicy", "CartPole-v1", n_steps=8, baseline=Bad(predicted)).learn(1)


def test_value_baseline_without_a_value_head_of_its_own():
    class SharedHead(ActorCriticPolicy):
        def predict_values(self, obs):
            return self.get_distribution(obs).distribution.logits[:, :1]

    with pytest.raises(ValueError, match="needs a value network, but in SharedHead no parameter belongs to the value alone"):
        REINFORCE(SharedHead, "CartPole-v1")


@pytest.mark.parametrize("how", ["truncated", "damaged", "unreadable", "no zip", "another zip"])
def test_torn_model_file(tmp_path, how):
    path = tmp_path / "model.zip"
    REINFORCE("MlpPolicy", "CartPole-v1").save(path)
    content = path.read_bytes()
    if how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif how == "damaged":
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :])
    elif how == "unreadable":
        # the compression method in the central directory: zipfile raises NotImplementedError
        at = content.rindex(b"PK\x01\x02") + 10
        path.write_bytes(content[:at] + b"\x63" + content[at + 1 :])
    elif how == "no zip":
        path.write_bytes(b"hello")
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("hello", "world")
    with pytest.raises(ValueError, match=r"model must be a whole model file made by save\(\)"):
        REINFORCE.load(tmp_path / "model")
    with pytest.raises(ValueError, match=r"must be a whole model file made by save\(\)"):
        REINFORCE.load(io.BytesIO(path.read_bytes()))
    with pytest.raises(ValueError, match=r"must be a whole model file made by save\(\)"):
        REINFORCE("MlpPolicy", "CartPole-v1").set_parameters(str(path))


def test_missing_model_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        REINFORCE.load(tmp_path / "nothing")


class Crashes(RewardListEnv):
    def step(self, action):
        if self.t == 2:
            raise RuntimeError("the simulator has crashed")
        return super().step(action)


def test_an_environment_that_raises_is_named_and_no_log_is_lost(tmp_path):
    env = DummyVecEnv([lambda: RewardListEnv([1.0] * 6), lambda: Crashes([1.0] * 6)])
    model = REINFORCE("MlpPolicy", env, n_steps=12)
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.logger.record("of/an/earlier/update", 3.0)
    with pytest.raises(RuntimeError, match="the simulator has crashed") as caught:
        model.learn(100)
    assert "raised by environment 1 in step 2 of the rollout" in "".join(caught.value.__notes__)
    assert "of/an/earlier/update" in (tmp_path / "progress.csv").read_text()


@pytest.mark.parametrize(("what", "step"), [("reward", 1), ("observation", 2), ("observation", 0)])
def test_not_finite_before_normalization(what, step):
    """VecNormalize would spread it to all environments, and the error would name the first."""

    class Broken(RewardListEnv):
        def _observation(self):
            return super()._observation() * (float("nan") if what == "observation" and self.t == step else 1.0)

        def step(self, action):
            observation, reward, *rest = super().step(action)
            return observation, float("inf") if what == "reward" and self.t == step + 1 else reward, *rest

    env = VecNormalize(DummyVecEnv([lambda: RewardListEnv([1.0] * 6), lambda: Broken([1.0] * 6)]))
    with pytest.raises(ValueError, match=rf"{what} must be finite, got (nan|inf) from environment 1 at step {step} of"):
        REINFORCE("MlpPolicy", env, n_steps=12).learn(100)


def test_nothing_to_freeze():
    message = "freeze_normalization_after is for an environment in VecNormalize, got 100 and none"
    with pytest.raises(ValueError, match=message):
        REINFORCE("MlpPolicy", "CartPole-v1", freeze_normalization_after=100)
    model = REINFORCE("MlpPolicy", VecNormalize(make_vec_env("CartPole-v1")), freeze_normalization_after=100)
    model.set_env(make_vec_env("CartPole-v1"))  # to be evaluated there
    with pytest.raises(ValueError, match=message):
        model.learn(10)
