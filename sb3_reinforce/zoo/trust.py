"""
What RL Zoo's commands may run of the files in a run's folder: nothing, unless the user says ``--trust``.

RL Zoo unpickles models and statistics, reads YAML that makes any object, evaluates text and imports dotted names. Here each of
these is read by us, or checked before it reaches the zoo. What the user types, or names as ``--conf-file``, is trusted.
"""

import ast
import inspect
import pickle
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import rl_zoo3
import yaml
from rl_zoo3.utils import get_class_by_name
from stable_baselines3.common import save_util
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.vec_env import VecEnvWrapper, vec_normalize

from sb3_reinforce import REINFORCE
from sb3_reinforce.running.trust import (
    ACTIVATIONS,
    CLASSES,
    CURE,
    OPTIMIZERS,
    UntrustedError,
    names_of,
    objects_in,
    read_objects,
    unpickle,
)
from sb3_reinforce.vec_env import vectorize
from sb3_reinforce.zoo.checkpoints import read_run
from sb3_reinforce.zoo.config import EVALUATED, IMPORTED
from sb3_reinforce.zoo.options import make_parser, read_options
from sb3_reinforce.zoo.patches import replaced

# Names in text that RL Zoo evaluates, in its own modules
NAMES = {
    "dict", "RMSpropTFLike", "HerReplayBuffer",
    *(f"{module}{each.__name__}" for module in ("nn.", "th.nn.") for each in ACTIVATIONS),
    *(f"th.optim.{each.__name__}" for each in OPTIMIZERS),
}  # fmt: skip
# Packages whose wrappers, callbacks and policies a run may name: RL Zoo itself imports them
PACKAGES = (
    "gymnasium.wrappers", "stable_baselines3.common", "sb3_contrib.common", "rl_zoo3.wrappers", "rl_zoo3.callbacks",
    "minigrid.wrappers", "sb3_reinforce",
)  # fmt: skip
EXPRESSIONS = (
    ast.Expression, ast.Constant, ast.List, ast.Tuple, ast.Dict, ast.keyword, ast.UnaryOp, ast.USub, ast.BinOp, ast.Add,
    ast.Sub, ast.Mult, ast.Div, ast.Pow, ast.Load,
)  # fmt: skip


def check_text(text: str) -> None:
    """
    Refuse Python text that does more than write down a value.

    :raises UntrustedError: if it calls anything but ``dict``, or names anything but an activation or an optimiser
    """
    try:
        nodes: list[ast.AST] = [ast.parse(text.strip(), mode="eval").body]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise UntrustedError(f"is not a value in Python: {text!r}") from None
    while nodes:
        node = nodes.pop()
        if isinstance(node, (ast.Name, ast.Attribute)):
            if ast.unparse(node) not in NAMES:
                raise UntrustedError(f"names {ast.unparse(node)}")
        elif isinstance(node, ast.Call):
            if ast.unparse(node.func) != "dict":
                raise UntrustedError(f"calls {ast.unparse(node.func)}")
            nodes += [*node.args, *node.keywords]
        elif isinstance(node, EXPRESSIONS):
            nodes += ast.iter_child_nodes(node)
        else:
            raise UntrustedError(f"is more than a value: {text!r}")


def _check_path(key: str, path: Any) -> None:
    if not (isinstance(path, str) and path.startswith(tuple(f"{package}." for package in PACKAGES))):
        raise UntrustedError(f"names {path}")
    try:
        found = get_class_by_name(path)
    except (ImportError, AttributeError) as error:
        raise UntrustedError(f"names {path} ({error})") from None
    if found is not vectorize and not (
        inspect.isclass(found) and issubclass(found, (gym.Wrapper, VecEnvWrapper, BaseCallback, BasePolicy))
    ):
        raise UntrustedError(f"names {path}")


def check_config(config: Mapping[str, Any], source: object) -> None:
    """
    Refuse a saved config whose text RL Zoo would evaluate, or whose names it would import, to run code.

    :param source: the file, for errors
    :raises UntrustedError: names the key
    """
    for key, value in config.items():
        try:
            if key in EVALUATED and isinstance(value, str):
                check_text(value)
            for item in value if isinstance(value, list) else [value] if key in IMPORTED and value is not None else []:
                path = next(iter(item), None) if isinstance(item, Mapping) else item
                if key in IMPORTED and (key != "policy" or "." in str(path)):
                    _check_path(key, path)
        except UntrustedError as error:
            raise UntrustedError(f"{source}: its {key} {error}: {CURE}") from None


def check_command(saved: Namespace, typed: Namespace, source: object) -> None:
    """
    Refuse a saved command line whose arguments would run code, unless the user has typed them as well.

    :param saved: its options, as ``options.read_options`` returns them
    :param typed: those that the user has typed
    :raises UntrustedError: names the option
    """
    for option, name in (("-params", "hyperparams"), ("--env-kwargs", "env_kwargs"), ("--eval-env-kwargs", "eval_env_kwargs")):
        for word in getattr(saved, name):
            if word not in getattr(typed, name):
                try:
                    check_text(word.partition(":")[2])
                except UntrustedError as error:
                    raise UntrustedError(f"{source}: its {option} {error}: {CURE}") from None
    named = [package for package in saved.gym_packages if package not in typed.gym_packages]
    if ":" in saved.env and saved.env != typed.env:
        named.append(saved.env)
    if saved.conf_file != typed.conf_file and not str(saved.conf_file or ".yml").endswith((".yml", ".yaml")):
        named.append(saved.conf_file)
    if named:
        raise UntrustedError(f"{source}: it imports {', '.join(named)}: {CURE}, or give the same options again")


def needs_trust(run_folder: Path, checkpoint: Path) -> bool:
    """:return: whether a run can be resumed only with ``--trust``"""
    parser = make_parser("train")
    try:
        run = read_run(run_folder)
        check_command(read_options(parser, run.arguments)[0], read_options(parser, [])[0], run_folder)
        check_config(run.hyperparams or {}, run_folder)
        objects_in(checkpoint, {})
    except (ValueError, OSError):
        return True
    return False


class PlainLoader(yaml.SafeLoader):
    """Reads what RL Zoo writes with ``yaml.dump``: plain values, tuples, ordered dicts, and classes that a model may name."""


def _name(loader: yaml.SafeLoader, name: str, node: yaml.Node) -> Any:
    if name not in CLASSES:
        raise UntrustedError(f"{node.start_mark.name}: it names {name}: {CURE}")
    return CLASSES[name]


def _refuse(loader: yaml.SafeLoader, tag: str, node: yaml.Node) -> Any:
    raise UntrustedError(f"{node.start_mark.name}: it holds the Python object {tag}: {CURE}")


_PYTHON = "tag:yaml.org,2002:python/"
PlainLoader.add_multi_constructor(f"{_PYTHON}name:", _name)
PlainLoader.add_multi_constructor(_PYTHON, _refuse)  # after the one above: the first that fits is taken
PlainLoader.add_constructor(f"{_PYTHON}tuple", lambda loader, node: tuple(loader.construct_sequence(node, deep=True)))
PlainLoader.add_constructor(
    f"{_PYTHON}object/apply:collections.OrderedDict",
    lambda loader, node: OrderedDict(*loader.construct_sequence(node, deep=True)),
)


@contextmanager
def files_read(trust: bool) -> Iterator[None]:
    """
    Inside, RL Zoo and Stable-Baselines3 run no code of the files that they read, for any algorithm.

    :param trust: the user trusts the files: they are read as upstream reads them
    """
    if trust:
        with replaced(REINFORCE, "load", partial(REINFORCE.load, trust=True)):
            yield
        return
    # policies of the other algorithms
    policies = [policy for algo in rl_zoo3.ALGOS.values() for policy in algo.policy_aliases.values()]
    classes = {**CLASSES, **names_of(policies)}

    def json_to_data(json_string: str, custom_objects: dict[str, Any] | None = None) -> dict[str, Any]:
        return original_json_to_data(json_string, read_objects(json_string, custom_objects or {}, classes))

    def load(file: Any) -> Any:
        try:
            return unpickle(file.read(), classes)
        except UntrustedError as error:
            raise UntrustedError(f"{file.name} {error}: {CURE}") from None

    def get_saved_hyperparams(stats_path: str, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], str | None]:
        file = Path(stats_path, "config.yml")
        if file.is_file():
            with file.open() as stream:
                check_config(yaml.load(stream, Loader=PlainLoader), file)
        return original_saved_hyperparams(stats_path, *args, **kwargs)

    original_json_to_data = save_util.json_to_data
    original_saved_hyperparams: Callable[..., Any] = rl_zoo3.utils.get_saved_hyperparams
    plain_pickle = SimpleNamespace(load=load, dump=pickle.dump, HIGHEST_PROTOCOL=pickle.HIGHEST_PROTOCOL)
    with ExitStack() as stack:
        for owner, name, value in (
            (save_util, "json_to_data", json_to_data),
            (save_util, "pickle", plain_pickle),
            (vec_normalize, "pickle", plain_pickle),
            (yaml, "UnsafeLoader", PlainLoader),
            # two modules, because the commands import it from different places
            (rl_zoo3.utils, "get_saved_hyperparams", get_saved_hyperparams),
            (rl_zoo3, "get_saved_hyperparams", get_saved_hyperparams),
        ):
            stack.enter_context(replaced(owner, name, value))
        yield
