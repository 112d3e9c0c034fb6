"""
Observations to actions: all that REINFORCE needs of the policy while it plays.

No value and no log-probability is computed here; those are computed once per update, for the whole batch. For a plain
MLP or LSTM on the CPU an action is some small matrix products, which NumPy does in microseconds on views that share memory
with the torch parameters. Everything else goes through torch. Both draw from the same distribution.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import (
    BernoulliDistribution,
    DiagGaussianDistribution,
    MultiCategoricalDistribution,
    StateDependentNoiseDistribution,
)
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import FlattenExtractor, MlpExtractor
from stable_baselines3.common.utils import obs_as_tensor
from torch import nn
from torch.distributions import Bernoulli, Categorical, Normal

from sb3_reinforce.policies import LIBRARIES, is_recurrent, library_class, name_of
from sb3_reinforce.rollout.extractor import (
    DISTRIBUTIONS,
    actor_features,
    changed_module,
    is_plain,
    shares_extractor,
    value_from_features,
)
from sb3_reinforce.rollout.graphs import GraphedForward
from sb3_reinforce.rollout.lstm import NumpyLstm

# Elementwise and free of randomness, so that applying the module itself to the shared memory is exact.
ACTIVATIONS = (nn.Tanh, nn.ReLU, nn.ELU, nn.LeakyReLU, nn.SiLU, nn.GELU, nn.Identity)
# Of sb3-contrib's maskable policies, by name, because it is an extra
MASKABLE = [f"sb3_contrib.common.maskable.distributions.Maskable{n}" for n in ("Categorical", "MultiCategorical", "Bernoulli")]
FLOAT32 = np.dtype(np.float32)
NOISE_BLOCK = 16_384  # random numbers drawn at a time, at most: one call per block, not per step


def policy_class(policy: nn.Module) -> type:
    """:return: the class of the policy, also of one wrapped by ``torch.compile``"""
    return type(getattr(policy, "_orig_mod", policy))


def overrides(policy: nn.Module, method: str) -> bool:
    """:return: whether the policy's class, or the object itself, replaces a method of the library class that it is made of"""
    own = getattr(policy, "_orig_mod", policy)
    return method in vars(own) or getattr(type(own), method) is not getattr(library_class(type(own)), method)


def draws_before_tanh(policy: nn.Module) -> bool:
    """:return: whether the policy draws by SB3's gSDE and squashes by tanh; see :mod:`sb3_reinforce.rollout.squashed`"""
    distribution = getattr(policy, "action_dist", None)
    return (
        type(distribution) is StateDependentNoiseDistribution
        and distribution.bijector is not None
        and not any(overrides(policy, method) for method in ("forward", "evaluate_actions", "get_distribution"))
    )


def make_sampler(policy: ActorCriticPolicy, n_envs: int, rng: np.random.Generator, with_values: bool = False) -> "Sampler":
    """
    :param with_values: whether V(s) is wanted, where it costs next to nothing; see :attr:`Sampler.values`
    :return: a sampler for one rollout: the NumPy sampler where it is exact, else the torch sampler
    """
    return TorchSampler(policy, rng, n_envs, with_values) if needs_torch(policy) else NumpySampler(policy, n_envs, rng)


def needs_torch(policy: nn.Module) -> str | None:
    """
    NumPy is used only for SB3's and sb3-contrib's own classes. Any subclass uses torch, since it may override something.

    :return: why actions must be sampled by torch, in a few words; None if NumPy computes the same
    """
    if name_of(type(policy)) not in ("MlpPolicy", "MlpLstmPolicy", "MaskableMlpPolicy", "MaskableMlpLstmPolicy"):
        return f"policy class {type(policy).__name__}"
    if type(policy.observation_space) is not spaces.Box or is_image_space(policy.observation_space):
        return f"observation space {policy.observation_space}"
    if not _is_library_distribution(policy.action_dist):
        return f"distribution {type(policy.action_dist).__name__}"
    if type(policy.pi_features_extractor) is not FlattenExtractor:
        return f"features extractor {type(policy.pi_features_extractor).__name__}"
    if type(policy.mlp_extractor) is not MlpExtractor or type(policy.mlp_extractor.policy_net) is not nn.Sequential:
        return f"network {type(policy.mlp_extractor).__name__}"
    if is_recurrent(policy) and type(policy.lstm_actor) is not nn.LSTM:
        return f"memory {type(policy.lstm_actor).__name__}"
    layers = (*policy.mlp_extractor.policy_net, policy.action_net)
    for layer in layers:
        if type(layer) is not nn.Linear and type(layer) not in ACTIVATIONS:
            return f"layer {type(layer).__name__}"
    if type(layers[0]) is not nn.Linear or type(layers[-1]) is not nn.Linear:
        return "a first or last layer that is not linear"
    for parameter in policy.parameters():
        if parameter.dtype != th.float32:
            return f"parameters of type {parameter.dtype}"
    if (changed := changed_module(policy)) is not None:
        return f"a hook or method set on {type(changed).__name__}"
    return None


def within_bounds(policy: ActorCriticPolicy, actions: np.ndarray) -> np.ndarray:
    """:return: what the policy drew, as the environments take it: Box actions clipped to, or scaled to, the bounds"""
    space = policy.action_space
    if not isinstance(space, spaces.Box):
        return actions
    if policy.squash_output:
        return policy.unscale_action(actions)  # type: ignore[return-value]
    return np.minimum(np.maximum(actions, space.low), space.high)


class Sampler(ABC):
    """
    Observations of all environments to one action each, drawn from the current policy.

    The network is the subclass's; the draw is the same for all. Discrete actions by the Gumbel-max trick:
    argmax_k(logit_k + G_k) is distributed as softmax(logits). One bit of MultiBinary likewise: logit + logistic noise > 0.
    Box actions: mean + std * normal noise.

    :param rng: source of the noise; distributions that NumPy does not know take torch's global generator
    """

    def __init__(self, policy: ActorCriticPolicy, rng: np.random.Generator):
        self.policy, self.rng = policy, rng
        self.action_shape: tuple[int, ...] = (-1, *policy.action_space.shape)  # type: ignore[misc]
        self.std: np.ndarray | None = None
        #: per step V(s), if it is wanted and the policy has it from the features of the action: shape [n_envs]
        self.values: list[np.ndarray] = []
        self._noise = np.empty((0,))
        self._next = 0
        distribution: Any = policy.action_dist
        self._to_actions: Callable[[np.ndarray, np.ndarray], np.ndarray]
        self._draw_noise: Callable[[tuple[int, ...]], np.ndarray] = lambda shape: -np.log(rng.standard_exponential(shape))
        if isinstance(distribution, DiagGaussianDistribution):
            self._draw_noise = lambda shape: rng.standard_normal(shape, dtype=np.float32)
            self._to_actions = self._gaussian
        elif isinstance(distribution, BernoulliDistribution):
            self._draw_noise = lambda shape: rng.logistic(size=shape)
            self._to_actions = self._bernoulli
        elif isinstance(distribution, MultiCategoricalDistribution) or hasattr(distribution, "distributions"):
            # also a masked MultiBinary action: two choices per bit
            self._edges = np.concatenate([[0], np.cumsum(distribution.action_dims)])
            self._to_actions = self._multi_categorical
        else:
            self._to_actions = self._categorical

    @abstractmethod
    def distribution_parameters(self, observations: Any) -> np.ndarray:
        """:return: the policy's logits (means for Box, whose ``std`` it sets), shape [n_envs, n]; valid until the next call"""

    def start_episodes(self, starts: np.ndarray) -> None:
        """Forget what a policy with memory has seen in these environments. ``starts`` is a mask of shape [n_envs]."""

    def __call__(self, observations: Any, masks: np.ndarray | None = None) -> np.ndarray:
        """
        :param masks: which actions are allowed, bool, shape [n_envs, width]; None: all
        :return: actions as the policy draws them, not yet clipped to the bounds, shape [n_envs, *action_space.shape]
        """
        return self._draw(_allowed(self.distribution_parameters(observations), masks))

    def greedy(self, observations: Any, masks: np.ndarray | None = None) -> np.ndarray:
        """:return: the policy's deterministic actions, its mode, shape [n_envs, *action_space.shape]"""
        return self._to_actions(_allowed(self.distribution_parameters(observations), masks), np.zeros(()))

    def _draw(self, parameters: np.ndarray) -> np.ndarray:
        if self._next == len(self._noise):
            # Twice the steps of the last block, so that short rollouts do not pay for numbers that they throw away.
            n_steps = min(max(2 * len(self._noise), 16), max(1, NOISE_BLOCK // parameters.size))
            self._noise, self._next = self._draw_noise((n_steps, *parameters.shape)), 0
        noise = self._noise[self._next]
        self._next += 1
        return self._to_actions(parameters, noise)

    def _gaussian(self, means: np.ndarray, noise: np.ndarray) -> np.ndarray:
        return (means + self.std * noise).reshape(self.action_shape)

    def _categorical(self, logits: np.ndarray, noise: np.ndarray) -> np.ndarray:
        return (logits + noise).argmax(axis=1)

    def _multi_categorical(self, logits: np.ndarray, noise: np.ndarray) -> np.ndarray:
        scores = logits + noise
        parts = [scores[:, a:b].argmax(axis=1) for a, b in zip(self._edges[:-1], self._edges[1:], strict=True)]
        return np.stack(parts, axis=1).reshape(self.action_shape)

    def _bernoulli(self, logits: np.ndarray, noise: np.ndarray) -> np.ndarray:
        return (logits + noise > 0).astype(self.policy.action_space.dtype).reshape(self.action_shape)


class TorchSampler(Sampler):
    """
    Samples from any policy, without value or log-probability unless the policy's class overrides ``forward``.

    The distributions that NumPy knows are drawn from by NumPy, so that the same seed gives the same actions whichever
    computes the network; all others (gSDE, a user's own) draw for themselves.
    """

    def __init__(self, policy: ActorCriticPolicy, rng: np.random.Generator, n_envs: int = 1, with_values: bool = False):
        super().__init__(policy, rng)
        # Without torch's Categorical, which takes longer than the layer before it
        self.from_features = is_plain(policy)
        if isinstance(policy.action_dist, DiagGaussianDistribution):
            self.std = np.exp(policy.log_std.detach().cpu().numpy())
        self.with_values = with_values and shares_extractor(policy)
        self._outputs = GraphedForward(policy, self._forward, self.with_values)
        #: hidden and cell states of a policy with memory, each of shape [layers, n_envs, hidden size]
        self.states: tuple[th.Tensor, th.Tensor] | None = None
        if is_recurrent(policy):
            recurrent: Any = policy
            layers, _, size = recurrent.lstm_hidden_state_shape
            self._no_starts = th.zeros(n_envs, device=policy.device)
            zeros = recurrent.lstm_actor.weight_hh_l0.new_zeros(layers, n_envs, size).detach()
            self.states = (zeros, zeros.clone())
        self.overrides_forward, self.draws_before_tanh = overrides(policy, "forward"), draws_before_tanh(policy)
        #: per step, what was drawn before tanh, where the policy squashes: shape [n_envs, *action_space.shape]
        self.before_tanh: list[np.ndarray] = []
        # A module of the user's own may keep a tensor for the update, where one made in inference mode cannot serve.
        known = all(type(module).__module__.startswith(("torch.nn.", *LIBRARIES)) for module in policy.modules())
        self.without_gradient = th.inference_mode if known else th.no_grad

    def __call__(self, observations: Any, masks: np.ndarray | None = None) -> np.ndarray:
        if self.from_features:
            return super().__call__(observations, masks)
        with self.without_gradient():
            obs_tensor = obs_as_tensor(observations, self.policy.device)
            if self.overrides_forward:
                return self._as_array(self.policy(obs_tensor, **_named(masks))[0])
            distribution = self.distribution(obs_tensor, masks)
            if self.draws_before_tanh:  # as its get_actions()
                drawn = distribution.distribution.mean + distribution.get_noise(distribution._latent_sde)
                self.before_tanh.append(self._as_array(drawn))
                return self._as_array(distribution.bijector.forward(drawn))
            if not _is_known(distribution):
                return self._as_array(distribution.get_actions())
            return self._draw(self._parameters_of(distribution))

    def greedy(self, observations: Any, masks: np.ndarray | None = None) -> np.ndarray:
        with self.without_gradient():
            obs_tensor = obs_as_tensor(observations, self.policy.device)
            if self.overrides_forward:
                return self._as_array(self.policy(obs_tensor, deterministic=True, **_named(masks))[0])
            return self._as_array(self.distribution(obs_tensor, masks).get_actions(deterministic=True))

    def distribution(self, obs_tensor: Any, masks: np.ndarray | None = None) -> Any:
        """:return: pi(.|s) of all environments; a policy with memory takes its step"""
        policy: Any = self.policy
        if self.states is None:
            return policy.get_distribution(obs_tensor, **_named(masks))
        distribution, self.states = policy.get_distribution(obs_tensor, self.states, self._no_starts, **_named(masks))
        return distribution

    def start_episodes(self, starts: np.ndarray) -> None:
        if self.states is not None:
            with self.without_gradient():
                for state in self.states:
                    state[:, th.as_tensor(starts, device=state.device)] = 0.0

    def distribution_parameters(self, observations: Any) -> np.ndarray:
        with self.without_gradient():
            if not self.from_features:
                return self._parameters_of(self.distribution(obs_as_tensor(observations, self.policy.device)))
            outputs = self._outputs(observations)
        if not self.with_values:
            return outputs
        self.values.append(outputs[:, -1])
        return outputs[:, :-1]

    def _forward(self, obs_tensor: Any) -> th.Tensor:
        """:return: the distribution's parameters, and where V(s) is wanted, that too: each copy from a GPU waits for it"""
        policy = self.policy
        features = actor_features(policy, obs_tensor)
        parameters = policy.action_net(policy.mlp_extractor.forward_actor(features))
        return th.cat([parameters, value_from_features(policy, features)], dim=1) if self.with_values else parameters

    def _parameters_of(self, distribution: Any) -> np.ndarray:
        parts = parts_of(distribution)
        if isinstance(distribution, DiagGaussianDistribution):
            self.std = parts[0].stddev.cpu().numpy()
            return parts[0].mean.cpu().numpy()
        return th.cat([part.logits for part in parts], dim=1).cpu().numpy()

    def _as_array(self, actions: th.Tensor) -> np.ndarray:
        return actions.cpu().numpy().reshape(self.action_shape)


def parts_of(distribution: Any) -> list[Any]:
    """:return: torch's distributions inside one of SB3's or sb3-contrib's: several for MultiDiscrete actions"""
    inner = getattr(distribution, "distributions", None) or getattr(distribution, "distribution", None)
    return inner if isinstance(inner, list) else [inner]


def _is_library_distribution(distribution: Any) -> bool:
    return type(distribution) in DISTRIBUTIONS or _full_name(distribution).removesuffix("Distribution") in MASKABLE


def _is_known(distribution: Any) -> bool:
    """Whether it is a library's own, around torch's own or a masked one: by exact types, a subclass draws for itself."""
    return _is_library_distribution(distribution) and all(
        type(part) in (Bernoulli, Categorical, Normal) or _full_name(part) == MASKABLE[0] for part in parts_of(distribution)
    )


def _full_name(thing: Any) -> str:
    return f"{type(thing).__module__}.{type(thing).__qualname__}"


def _named(masks: np.ndarray | None) -> dict[str, Any]:
    return {} if masks is None else {"action_masks": masks}  # policies that take none do not know the name


def _allowed(logits: np.ndarray, masks: np.ndarray | None) -> np.ndarray:
    return logits if masks is None else np.where(masks, logits, -np.inf)  # so it is never the largest


class NumpySampler(Sampler):
    """
    Samples from a plain MLP or LSTM policy of Stable-Baselines3; see :func:`needs_torch` for which ones.

    Weights and biases are seen through views, those on a GPU are copied; these and the standard deviation are those of the
    moment it is made: one per rollout.
    """

    def __init__(self, policy: ActorCriticPolicy, n_envs: int, rng: np.random.Generator):
        super().__init__(policy, rng)
        self.layers = _layers((*policy.mlp_extractor.policy_net, policy.action_net), n_envs)
        self.n_envs = n_envs
        self.lstm = NumpyLstm(policy.lstm_actor, n_envs) if is_recurrent(policy) else None  # type: ignore[arg-type]
        if isinstance(policy.action_dist, DiagGaussianDistribution):
            self.std = np.exp(policy.log_std.detach().cpu().numpy())

    def distribution_parameters(self, observations: Any) -> np.ndarray:
        # Methods of the array, and arrays of equal shape: a third of the time that np.matmul and broadcasting take.
        hidden = observations if observations.dtype is FLOAT32 else observations.astype(np.float32)
        hidden = hidden if hidden.ndim == 2 else hidden.reshape(self.n_envs, -1)
        if self.lstm is not None:
            hidden = self.lstm(hidden)
        for weight, bias, activation, out in self.layers:
            hidden.dot(weight, out)
            np.add(out, bias, out)
            hidden = out if activation is None else activation(out)
        return hidden

    def start_episodes(self, starts: np.ndarray) -> None:
        if self.lstm is not None:
            self.lstm.start_episodes(starts)


Layer = tuple[np.ndarray, np.ndarray, Callable[[np.ndarray], np.ndarray] | None, np.ndarray]


def _layers(modules: tuple[nn.Module, ...], n_envs: int) -> list[Layer]:
    """
    :param modules: Linear layers and activations in order, the last one Linear
    :return: per Linear layer: transposed weight and bias (views of parameters on the CPU), the activations behind it (None
        for none), and memory for its output
    """
    layers: list[Layer] = []
    for position, module in enumerate(modules):
        if isinstance(module, nn.Linear):
            behind = []
            for activation in modules[position + 1 :]:
                if isinstance(activation, nn.Linear):
                    break
                behind.append(_in_numpy(activation))
            weight = module.weight.detach().cpu().numpy().T
            bias = module.bias.detach().cpu().numpy()[None] if module.bias is not None else np.zeros((1, 1), np.float32)
            layers.append((weight, bias, _compose(behind), np.empty((n_envs, module.out_features), np.float32)))
    return layers


def _in_numpy(activation: nn.Module) -> Callable[[np.ndarray], np.ndarray]:
    if isinstance(activation, nn.Tanh):
        return lambda x: np.tanh(x, x)
    if isinstance(activation, nn.ReLU):
        return lambda x: np.maximum(x, 0.0, out=x)
    return lambda x: activation(th.from_numpy(x)).numpy()


def _compose(functions: list[Callable[[np.ndarray], np.ndarray]]) -> Callable[[np.ndarray], np.ndarray] | None:
    if len(functions) <= 1:
        return functions[0] if functions else None

    def composed(x: np.ndarray) -> np.ndarray:
        for function in functions:
            x = function(x)
        return x

    return composed
