"""Where action masks are found, what is refused, and who draws among the allowed actions alone."""

import warnings
from typing import ClassVar

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnvWrapper, VecNormalize

from sb3_reinforce import REINFORCE, EpisodicAlgorithm, GradientDiagnostics, VectorEnvAdapter, compare_baselines
from sb3_reinforce.action_masks import ActionMasks, as_masks
from sb3_reinforce.baselines import BASELINES
from tests.masked_envs import ACTION_SPACES, GivenMasks, Strict, strict

pytest.importorskip("sb3_contrib")

SOURCES = {"method": "MaskableMlpPolicy", "key": "MaskableMultiInputPolicy", "info": "MaskableMlpPolicy"}
SMALL = dict(policy_kwargs=dict(net_arch=[8]), seed=0, device="cpu")


def given(masks, **kwargs):
    return DummyVecEnv([lambda: GivenMasks(masks, **kwargs)])


# --- found ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ACTION_SPACES)
@pytest.mark.parametrize("source", SOURCES)
def test_no_forbidden_action_is_played(source, kind):
    """The environment raises at one. Two rollouts, the second after an update; then the deterministic policy."""
    model = REINFORCE(SOURCES[source], strict(source, 2, kind), n_steps=20, **SMALL).learn(120)
    assert model._n_updates >= 2
    assert model._masks.source == {"key": "observation"}.get(source, source)
    for deterministic in (True, False):
        evaluate_policy(model, strict(source, 2, kind), n_eval_episodes=6, deterministic=deterministic, warn=False)


@pytest.mark.parametrize("baseline", BASELINES)
def test_every_baseline(baseline):
    REINFORCE("MaskableMlpPolicy", strict(n_envs=2), n_episodes=2, baseline=baseline, **SMALL).learn(20)


@pytest.mark.parametrize(
    "arguments",
    [
        dict(natural_gradient=True),
        dict(n_epochs=2, batch_size=16, chunk_size=8),
        dict(unfinished="bootstrap", n_steps=7),
        dict(truncation="bootstrap"),
    ],
    ids=lambda arguments: next(iter(arguments)),
)
@pytest.mark.parametrize("source", ["method", "info"])
def test_every_mode(source, arguments):
    """Where environments run on into the next rollout, the masks of the last step do, too."""
    model = REINFORCE("MaskableMlpPolicy", strict(source, 2), **{"n_steps": 20, **SMALL, **arguments}).learn(60)
    model.learn(30, reset_num_timesteps=False, callback=GradientDiagnostics(1))
    assert np.isfinite(model.logger.name_to_value.get("gradient/fisher_trace", 0.0))


def test_compare_baselines():
    model = REINFORCE("MaskableMlpPolicy", strict(n_envs=2), n_steps=20, **SMALL).learn(20)
    assert len(compare_baselines(strict(n_envs=2), model, n_episodes=8, n_bootstrap=2).rows) == 8


def vector(source, mode):
    return VectorEnvAdapter(SyncVectorEnv([lambda: Strict(source)] * 2, autoreset_mode=mode))


@pytest.mark.parametrize("mode", AutoresetMode)
@pytest.mark.parametrize("source", SOURCES)
def test_vector_environments(source, mode):
    """In each autoreset mode: the mask behind the end of an episode is that of the reset."""
    model = REINFORCE(SOURCES[source], vector(source, mode), n_steps=20, **SMALL).learn(60)
    evaluate_policy(model, vector(source, mode), n_eval_episodes=6, warn=False)


class Answers(gym.vector.VectorEnv):
    """A vector environment without single environments inside: one method for all masks."""

    metadata: ClassVar = {"autoreset_mode": AutoresetMode.SAME_STEP}
    num_envs = 2
    single_observation_space, single_action_space = spaces.Box(-1, 1, (3,), np.float32), spaces.Discrete(4)
    observation_space = spaces.Box(-1, 1, (2, 3), np.float32)
    action_space = spaces.MultiDiscrete([4, 4])

    def action_masks(self):
        return np.eye(4, dtype=bool)[:2]

    def reset(self, *, seed=None, options=None):
        return np.zeros((2, 3), np.float32), {}

    def step(self, actions):
        assert actions.tolist() == [0, 1]
        ends = np.ones(2, bool)
        return np.zeros((2, 3), np.float32), np.ones(2), ends, ~ends, {"final_obs": np.zeros((2, 3), np.float32)}


def test_a_vector_environment_with_one_answer_for_all():
    REINFORCE("MaskableMlpPolicy", VectorEnvAdapter(Answers()), n_episodes=2, **SMALL).learn(4)


@pytest.mark.parametrize("source", ["method", "info"])
def test_other_processes(source):
    env = SubprocVecEnv([lambda: Strict(source)] * 2, start_method="fork")
    model = REINFORCE("MaskableMlpPolicy", env, n_steps=20, **SMALL).learn(20)
    evaluate_policy(model, env, n_eval_episodes=2, warn=False)
    env.close()


def test_action_masker_and_a_wrapper_that_asks_otherwise():
    from sb3_contrib.common.wrappers import ActionMasker

    class Forbids0(VecEnvWrapper):
        def env_method(self, name, *args, **kwargs):
            masks = np.stack(self.venv.env_method(name, *args, **kwargs))
            return list(masks & [False, True, True])

        def reset(self):
            return self.venv.reset()

        def step_wait(self):
            return self.venv.step_wait()

    def one():
        return ActionMasker(Monitor(GivenMasks([])), lambda env: np.array([True, True, False]))

    env = DummyVecEnv([one])
    assert ActionMasks(env).read(None, None, None, 0).tolist() == [[True, True, False]]
    assert ActionMasks(Forbids0(env)).read(None, None, None, 0).tolist() == [[False, True, False]]


def test_vec_normalize_leaves_masks_as_they_are():
    env = VecNormalize(strict("key", 2), norm_obs_keys=["x"])
    REINFORCE("MaskableMultiInputPolicy", env, n_steps=20, **SMALL).learn(40)

    class BoxMask(gym.ObservationWrapper):
        observation_space = spaces.Dict(x=spaces.Box(-1, 1, (3,)), action_mask=spaces.Box(0, 1, (4,)))

        def observation(self, observation):
            return observation

    normalized = VecNormalize(DummyVecEnv([lambda: BoxMask(Strict("key"))]))
    message = r"VecNormalize must leave the action masks as they are.*give norm_obs_keys=\['x'\]"
    with pytest.raises(ValueError, match=message):
        REINFORCE("MaskableMultiInputPolicy", normalized, n_steps=20, **SMALL).learn(40)


def test_a_callback_sees_the_masks():
    """Under the name that MaskablePPO has for them."""
    seen = []

    def note(locals_, globals_):
        seen.append(locals_["action_masks"].tolist())
        return True

    REINFORCE("MaskableMlpPolicy", given([[1, 0, 0], [0, 1, 1]], length=2), n_steps=2, **SMALL).learn(2, callback=note)
    assert seen == [[[True, False, False]], [[False, True, True]]]


def test_an_algorithm_of_ones_own():
    class Plays(EpisodicAlgorithm):
        def train(self):
            self.masks = self.rollout_buffer.action_masks.reshape(-1, 3).tolist()

    model = Plays("MaskableMlpPolicy", given([[1, 0, 0], [0, 1, 1]], length=2), n_steps=2, **SMALL).learn(2)
    assert model.masks == [[1, 0, 0], [0, 1, 1]]


# --- refused ----------------------------------------------------------------------------------------------------------

WRONG = [
    (
        [[1, 1, 0], [0, 0, 0]],
        r"must allow one action at least, got one that forbids all 3 of environment 0 at step 1 of the rol",
    ),
    ([[1, 1, 0], [1, 0]], r"must have 3 elements for Discrete\(3\), one per choice, got \[1, 0\] of environment 0 at step 1"),
    ([None], r"must have 3 elements for Discrete\(3\), one per choice, got None of environment 0 at step 0"),
    ([[1, 0.5, 0]], r"must be True \(or 1\) where an action is allowed .* got \[1, 0.5, 0\] of environment 0 at step 0"),
    ([[1, np.nan, 0]], r"must be True \(or 1\) .* got \[1, nan, 0\] of environment 0 at step 0"),
    ([["a", "b", "c"]], r"must be True \(or 1\) .* got \['a', 'b', 'c'\] of environment 0 at step 0"),
]


@pytest.mark.parametrize(("masks", "message"), WRONG, ids=lambda value: str(value)[:20])
def test_wrong_masks(masks, message):
    with pytest.raises(ValueError, match=message):
        REINFORCE("MaskableMlpPolicy", given(masks), n_steps=4, **SMALL).learn(4)


def test_the_environment_is_named():
    envs = [lambda: GivenMasks([[1, 1, 1]]), lambda: GivenMasks([[1, 1, 1], [1, 1, 1], [0, 0, 0]])]
    with pytest.raises(ValueError, match=r"forbids all 3 of environment 1 at step 2 of the rollout"):
        REINFORCE("MaskableMlpPolicy", DummyVecEnv(envs), n_steps=4, **SMALL).learn(4)


def test_one_part_of_an_action_that_has_no_choice():
    env = given([[1, 1, 0, 0, 0]], action_space=ACTION_SPACES["MultiDiscrete"])
    with pytest.raises(ValueError, match="forbids all 3 of part 1 of environment 0 at step 0 of the rollout"):
        REINFORCE("MaskableMlpPolicy", env, n_steps=4, **SMALL).learn(4)


def test_an_error_at_a_forbidden_action_is_explained_by_the_mask():
    """Strict raises AssertionError at action 0, which is drawn where nothing is allowed."""

    class Dead(Strict):
        def _begin_step(self):
            observation, info = super()._begin_step()
            self.mask[:] = False
            return observation, info

    with pytest.raises(ValueError, match="forbids all 4 of environment 0 at step 0 of the rollout"):
        REINFORCE("MaskableMlpPolicy", DummyVecEnv([Dead]), n_steps=4, **SMALL).learn(4)


def test_an_info_that_is_missing_in_one_step():
    class Forgets(Strict):
        def step(self, action):
            return (*super().step(action)[:2], False, False, {})

    with pytest.raises(ValueError, match=r"must have 4 elements .* got None of environment 0 at step 1"):
        REINFORCE("MaskableMlpPolicy", DummyVecEnv([lambda: Forgets("info")]), n_steps=4, **SMALL).learn(4)


def test_masks_may_be_nested_or_numbers():
    """As sb3-contrib takes them: a part of a MultiDiscrete action per row."""
    space = spaces.MultiDiscrete([2, 2])
    assert as_masks([[[1, 0], [0, 1]]], 1, space, "").tolist() == [[True, False, False, True]]
    assert as_masks([[1.0, 0.0, 0.0, 1.0]], 1, space, "").dtype == bool


@pytest.mark.parametrize(
    ("policy", "env", "arguments", "message"),
    [
        (
            "MaskableMlpPolicy",
            "CartPole-v1",
            {},
            "MaskableMlpPolicy needs an environment with action masks, got none: give it a",
        ),
        ("MaskableMlpPolicy", "Pendulum-v1", {}, "masks Discrete, MultiDiscrete and MultiBinary actions, got Box"),
        ("MaskableMlpPolicy", strict, dict(use_sde=True), "can only be used with continuous actions"),
        ("MaskableCnnPolicy", strict, {}, "MaskableCnnPolicy is for images"),
        ("MaskableMlpPolicy", lambda: strict("key"), {}, "policy must be Ma"),
    ],
    ids=["no masks", "Box", "gSDE", "no image", "Dict"],
)
def test_policies_that_do_not_fit(policy, env, arguments, message):
    with pytest.raises(ValueError, match=message):
        REINFORCE(policy, env if isinstance(env, str) else env(), n_steps=8, **SMALL, **arguments).learn(8)


def test_a_rollout_buffer_without_masks():
    from stable_baselines3.common.buffers import RolloutBuffer

    with pytest.raises(ValueError, match="rollout_buffer_class must keep action_masks for MaskableMlpPolicy"):
        REINFORCE("MaskableMlpPolicy", strict(), rollout_buffer_class=RolloutBuffer, **SMALL)


# --- masks that nobody takes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("source", "policy", "where"), [
    ("method", "MlpPolicy", "method action_masks"),
    ("key", "MultiInputPolicy", 'key "action_mask" of the observations'),
    ("info", "MlpPolicy", r'info\["action_mask"\]'),
])  # fmt: skip
def test_one_warning_where_the_policy_takes_none(source, policy, where, tmp_path):
    class Lenient(Strict):
        def step(self, action):
            self.mask[:] = True
            return super().step(action)

    env = DummyVecEnv([lambda: Lenient(source)])
    message = rf'the environment has action masks \({where}\), which {policy} does not take.* Use "Maskable{policy}"'
    with pytest.warns(UserWarning, match=message) as caught:
        model = REINFORCE(policy, env, n_steps=8, **SMALL).learn(8).learn(8)
    assert len(caught) == 1
    model.save(tmp_path / "model")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        REINFORCE.load(tmp_path / "model", env).learn(8)  # said already


# --- predict ----------------------------------------------------------------------------------------------------------


def test_predict_with_masks():
    model = REINFORCE("MaskableMlpPolicy", given([[1, 1, 1]]), n_steps=4, **SMALL)
    one, several = np.ones(1, np.float32), np.ones((2, 1), np.float32)
    for action in range(3):
        mask = np.eye(3, dtype=bool)[action]
        assert model.predict(one, action_masks=mask)[0] == action
        assert model.predict(one, action_masks=mask[None], deterministic=True)[0] == action
        assert model.predict(several, action_masks=[mask, [1, 0, 0]])[0].tolist() == [action, 0]
    with pytest.raises(ValueError, match=r"forbids all 3 of environment 1 at step 0 of predict\(\)"):
        model.predict(several, action_masks=[[1, 1, 1], [0, 0, 0]])
    with pytest.raises(ValueError, match=r"must have 3 elements for Discrete\(3\), one per choice, got \[1, 1\]"):
        model.predict(one, action_masks=[1, 1])
    with pytest.raises(ValueError, match="one mask for each of 2 observations, got 1"):
        model.predict(several, action_masks=[[1, 1, 1]])
    with pytest.raises(ValueError, match=r"must have 3 elements .* got 1"):
        model.predict(one, action_masks=1)
    plain = REINFORCE("MlpPolicy", "CartPole-v1", **SMALL)
    with pytest.raises(ValueError, match="action_masks is for maskable policies such as MaskableMlpPolicy, got MlpPolicy"):
        plain.predict(np.zeros(4, np.float32), action_masks=[1, 1])


def test_predict_takes_the_mask_in_the_observation():
    model = REINFORCE("MaskableMultiInputPolicy", strict("key"), n_steps=8, **SMALL)
    for action in range(4):
        observation = dict(x=np.zeros(3, np.float32), action_mask=np.eye(4, dtype=np.int8)[action])
        assert model.predict(observation)[0] == action
        assert model.predict({key: array[None] for key, array in observation.items()})[0].tolist() == [action]


def test_predict_that_finds_no_masks_warns_once():
    env = given([[1, 0, 0]])
    model = REINFORCE("MaskableMlpPolicy", env, n_steps=4, **SMALL)
    observation = env.reset()
    with pytest.warns(
        UserWarning, match=r"got no action_masks and found none.*pass action_masks=get_action_masks\(env\)"
    ) as caught:
        assert len({int(model.predict(observation)[0][0]) for _ in range(50)}) > 1
    assert len(caught) == 1


def test_evaluations_while_training(tmp_path):
    """SB3's EvalCallback plays among the allowed actions alone: others would raise."""
    callback = EvalCallback(strict(n_envs=2), eval_freq=10, n_eval_episodes=4, verbose=0, warn=False, log_path=str(tmp_path))
    REINFORCE("MaskableMlpPolicy", strict(), n_steps=20, **SMALL).learn(40, callback=callback)
    assert len(callback.evaluations_results) >= 4


def test_masks_in_saved_models(tmp_path):
    """No trust is needed; the same actions and another update afterwards."""
    model = REINFORCE("MaskableMlpPolicy", strict(), n_steps=20, **SMALL).learn(20)
    model.save(tmp_path / "model")
    loaded = REINFORCE.load(tmp_path / "model", strict())
    observations, masks = np.ones((5, 3), np.float32), np.random.default_rng(0).random((5, 4)) < 0.7
    masks[:, 0] = True
    expected = model.predict(observations, deterministic=True, action_masks=masks)[0]
    np.testing.assert_array_equal(loaded.predict(observations, deterministic=True, action_masks=masks)[0], expected)
    loaded.learn(20)
    assert type(loaded.rollout_buffer).__name__ == "MaskableRolloutBuffer"
