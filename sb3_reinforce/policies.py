"""The names of policies and the classes that they stand for, imported when they are asked for: sb3-contrib is an extra."""

from collections.abc import Iterator
from importlib import import_module
from typing import Any

from stable_baselines3.common.policies import BasePolicy
from torch import nn

RECURRENT = "sb3_contrib.common.recurrent.policies"
MASKABLE = "sb3_contrib.common.maskable.policies"
MASKABLE_RECURRENT = "sb3_reinforce.maskable_recurrent"
#: the full name of the class of each
NAMES = {
    "MlpPolicy": "stable_baselines3.common.policies.ActorCriticPolicy",
    "CnnPolicy": "stable_baselines3.common.policies.ActorCriticCnnPolicy",
    "MultiInputPolicy": "stable_baselines3.common.policies.MultiInputActorCriticPolicy",
    "MlpLstmPolicy": f"{RECURRENT}.RecurrentActorCriticPolicy",
    "CnnLstmPolicy": f"{RECURRENT}.RecurrentActorCriticCnnPolicy",
    "MultiInputLstmPolicy": f"{RECURRENT}.RecurrentMultiInputActorCriticPolicy",
    "MaskableMlpPolicy": f"{MASKABLE}.MaskableActorCriticPolicy",
    "MaskableCnnPolicy": f"{MASKABLE}.MaskableActorCriticCnnPolicy",
    "MaskableMultiInputPolicy": f"{MASKABLE}.MaskableMultiInputActorCriticPolicy",
    "MaskableMlpLstmPolicy": f"{MASKABLE_RECURRENT}.MaskableRecurrentActorCriticPolicy",
    "MaskableCnnLstmPolicy": f"{MASKABLE_RECURRENT}.MaskableRecurrentActorCriticCnnPolicy",
    "MaskableMultiInputLstmPolicy": f"{MASKABLE_RECURRENT}.MaskableRecurrentMultiInputActorCriticPolicy",
}


def name_of(policy_class: type) -> str | None:
    """:return: the name of a policy's class; None for a class of the user's own"""
    full_name = f"{policy_class.__module__}.{policy_class.__qualname__}"
    return next((name for name, known in NAMES.items() if known == full_name), None)


def class_named(full_name: str) -> type[BasePolicy]:
    """
    :param full_name: one of the values of :data:`NAMES`
    :raises ValueError: if its library is not installed
    """
    module, _, name = full_name.rpartition(".")
    try:
        return getattr(import_module(module), name)  # type: ignore[no-any-return]
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "sb3_contrib":
            raise
        alias = next(alias for alias, known in NAMES.items() if known == full_name)
        raise ValueError(f'policy {alias!r} needs sb3-contrib: pip install "sb3-reinforce[contrib]"') from None


def as_class(policy: str | type[BasePolicy]) -> type:
    """:return: the class of a policy that is given by its name or by its class; ``object`` for an unknown name"""
    if isinstance(policy, str):
        return class_named(NAMES[policy]) if policy in NAMES else object
    return policy


class PolicyAliases(dict[str, type[BasePolicy]]):
    """The classes by :data:`NAMES`: to ask whether a name is there imports nothing, to ask for its class does."""

    def __init__(self) -> None:
        super().__init__(dict.fromkeys(NAMES, BasePolicy))  # type: ignore[type-abstract]

    def __getitem__(self, name: str) -> type[BasePolicy]:
        return class_named(NAMES[name])

    def values(self) -> Any:
        """:return: all classes"""
        return [self[name] for name in self]

    def items(self) -> Any:
        """:return: all names with their classes"""
        return [(name, self[name]) for name in self]

    def __iter__(self) -> Iterator[str]:
        return iter(NAMES)


LIBRARIES = ("stable_baselines3.", "sb3_contrib.", "sb3_reinforce.")


def library_class(policy_class: type) -> type:
    """:return: the class of a library that a policy's class is, or is made of: torch's Module where there is no other"""
    return next((base for base in policy_class.__mro__ if base.__module__.startswith(LIBRARIES)), nn.Module)


def is_recurrent_class(policy_class: type) -> bool:
    """:return: whether it is sb3-contrib's recurrent policy, or made of it"""
    return any(f"{base.__module__}.{base.__qualname__}" == NAMES["MlpLstmPolicy"] for base in policy_class.__mro__)


def is_recurrent(policy: Any) -> bool:
    """:return: whether a policy has memory: it reads an episode from its beginning"""
    return is_recurrent_class(type(getattr(policy, "_orig_mod", policy)))
