"""Checks of policies: whether class, arguments, optimiser and spaces fit together. Errors say what to use instead."""

import difflib
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor, NatureCNN

from sb3_reinforce.policies import is_recurrent_class, library_class, name_of

SMALLEST_IMAGE = 36  # what NatureCNN's kernels (8, 4 and 3 with strides 4, 2 and 1) leave one number of
# What policies of sb3-contrib are called with, beside observations and actions
CONTRIB = {"lstm_states": "RecurrentPPO"}


def check_policy_arguments(policy: Any, aliases: Mapping[str, type[BasePolicy]], policy_kwargs: Any) -> None:
    """:raises ValueError: for a policy that does not exist, or arguments for it that are no dict"""
    expected = f"policy must be one of {', '.join(map(repr, aliases))} or a class such as ActorCriticPolicy, got {policy!r}"
    if isinstance(policy, str) and policy not in aliases:
        raise ValueError(expected)
    if isinstance(policy, str):
        aliases[policy]  # a ValueError if it needs a library that is not installed
    if not isinstance(policy, str) and not (
        isinstance(policy, type)
        and issubclass(policy, BasePolicy)
        and (hasattr(policy, "evaluate_actions") or hasattr(policy, "get_distribution"))
    ):
        raise ValueError(expected)
    if not isinstance(policy_kwargs, (dict, type(None))):
        raise ValueError(f"policy_kwargs must be a dict, such as dict(net_arch=[64, 64]), got {policy_kwargs!r}")


@contextmanager
def explained_policy_errors(model: OnPolicyAlgorithm) -> Iterator[None]:
    """
    Around the making of the networks: check what they are made of, and say what an error there is about.

    :raises ValueError: for a policy that cannot be made, or cannot be trained
    """
    policy_class, kwargs = model.policy_class, model.policy_kwargs
    name = name_of(policy_class) or policy_class.__name__
    if is_recurrent_class(policy_class):
        _check_memory(model, name, kwargs)
    else:
        _check_calls(policy_class, name, type(model).__name__)
        if getattr(model, "bptt_steps", None) is not None:
            raise ValueError(f"bptt_steps is for a recurrent policy, got {model.bptt_steps} and {name}: leave it out")  # type: ignore[attr-defined]
    _check_keys(policy_class, name, kwargs)
    if name in model.policy_aliases:  # a class of the user's own may extract features otherwise
        _check_observations(policy_class, name, kwargs, model.observation_space)
    try:
        yield
    except (AssertionError, AttributeError, TypeError) as error:
        if "rollout_buffer" in vars(model):  # made just before the policy
            raise ValueError(f"{name} cannot be made with policy_kwargs={kwargs}: {error}") from error
        if model.rollout_buffer_kwargs:
            raise ValueError(f"rollout_buffer_kwargs={model.rollout_buffer_kwargs}: {error}") from error
        raise
    if hasattr(model.policy, "optimizer"):
        _check_optimizer(model.policy.optimizer)


def _check_memory(model: OnPolicyAlgorithm, name: str, kwargs: Mapping[str, Any]) -> None:
    policy_class = model.policy_class
    known: Any = library_class(policy_class)
    for method in ("forward", "get_distribution", "predict_values", "evaluate_actions", "_process_sequence"):
        if getattr(policy_class, method) is not getattr(known, method):
            raise ValueError(
                f"a recurrent policy must leave {method}() as it is in {known.__name__}, because whole episodes are read "
                f"otherwise here, got {name}: change its features extractor, its layers or its distribution instead"
            )
    for key in ("bidirectional", "batch_first", "proj_size"):
        if (kwargs.get("lstm_kwargs") or {}).get(key):
            raise ValueError(f"lstm_kwargs must not have {key!r}, which {name} cannot serve, got {kwargs['lstm_kwargs']}")
    if getattr(model, "unfinished", None) == "bootstrap":
        raise ValueError(
            'a recurrent policy needs unfinished="finish": its memory starts with an episode, and unfinished="bootstrap" '
            f"learns from parts of episodes, got {name}"
        )


def _check_calls(policy_class: Any, name: str, algorithm: str) -> None:
    if not hasattr(policy_class, "evaluate_actions"):
        return
    others = [*inspect.signature(policy_class.evaluate_actions).parameters.values()][3:]  # self, observations, actions
    needed = [p.name for p in others if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    if needed:
        other = next((f", or {other} of sb3-contrib" for part, other in CONTRIB.items() if part in needed), "")
        raise ValueError(
            f"policy must need nothing but observations, got {name}, which also needs {' and '.join(needed)} that {algorithm} "
            f"does not give: use MlpPolicy, CnnPolicy or MultiInputPolicy{other}"
        )


def _check_keys(policy_class: type[BasePolicy], name: str, kwargs: Mapping[str, Any]) -> None:
    parameters = inspect.signature(policy_class).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    for key in kwargs:
        if key not in parameters:
            nearest = difflib.get_close_matches(key, parameters, n=1)
            meant = f", did you mean {nearest[0]!r}?" if nearest else f": it has {', '.join([*parameters][3:])}"
            raise ValueError(f"policy_kwargs: {name} has no {key!r}{meant}")


def _check_observations(policy_class: type[BasePolicy], name: str, kwargs: Mapping[str, Any], space: spaces.Space) -> None:
    parameters = inspect.signature(policy_class).parameters

    def given(argument: str) -> Any:
        return kwargs[argument] if argument in kwargs else getattr(parameters.get(argument), "default", None)

    extractor, is_normalized = given("features_extractor_class"), not given("normalize_images")
    is_dict = isinstance(space, spaces.Dict)
    if is_dict and extractor in (FlattenExtractor, NatureCNN):
        fitting = name_of(policy_class) or ""
        for part in ("Mlp", "Cnn"):
            fitting = fitting.replace(part, "MultiInput")
        raise ValueError(f"policy must be {fitting} for Dict observations, got {name} and {space}")
    if not is_dict and extractor is CombinedExtractor:
        raise ValueError(f"{name} is for Dict observations, got {space}: use MlpPolicy, or CnnPolicy for images")
    if extractor is NatureCNN and not is_image_space(space, check_channels=False, normalized_image=is_normalized):
        raise ValueError(
            f"{name} is for images, got {space}: use MlpPolicy for vectors. Images are uint8 in [0, 255]; floats in "
            "[0, 1], channels first, need policy_kwargs=dict(normalize_images=False)"
        )
    images = [space] if extractor is NatureCNN else []
    if isinstance(space, spaces.Dict) and extractor is CombinedExtractor:
        images = [part for part in space.spaces.values() if is_image_space(part, normalized_image=is_normalized)]
    for image in images:
        assert image.shape is not None, "it is a Box"
        if min(image.shape[1:]) < SMALLEST_IMAGE:
            raise ValueError(
                f"{name} needs images of {SMALLEST_IMAGE} x {SMALLEST_IMAGE} pixels or more, channels first, got {image}: "
                "use gymnasium.wrappers.ResizeObservation, or give policy_kwargs=dict(features_extractor_class=...)"
            )


def _check_optimizer(optimizer: th.optim.Optimizer) -> None:
    kind = type(optimizer).__name__
    parameters = inspect.signature(optimizer.step).parameters.values()
    if any(parameter.name == "closure" and parameter.default is parameter.empty for parameter in parameters):
        raise ValueError(
            f"optimizer_class must step by the gradient alone, got {kind}, which evaluates the loss again, by a closure: use "
            "Adam, or another that needs none"
        )
    if isinstance(optimizer, th.optim.SparseAdam):
        raise ValueError(f"optimizer_class must take dense gradients, got {kind}: use Adam")
