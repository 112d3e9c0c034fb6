"""
What is broken in RL Zoo's commands, or cannot work for an algorithm that is not built in, mended around a call of its modules.

A mend finds out for itself whether it is needed, and is undone when the command is done. ``tests/test_mends.py`` shows for
each that RL Zoo alone still fails: where that is no longer so the test says which mend to delete.
"""

import argparse
import importlib
import os
import re
import shutil
import subprocess
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

# RL Zoo's scripts as its own commands start and name them, and our verbs
VERB_OF_SCRIPT = {
    "enjoy.py": "enjoy",
    "rl_zoo3.enjoy": "enjoy",
    "rl_zoo3.record_video": "record-video",
    "rl_zoo3.load_from_hub": "pull",
    "rl_zoo3.push_to_hub": "push",
    "rl_zoo3.train": "train",
}
_MISSING = object()


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """
    :param owner: a module or class
    :param name: its attribute, which need not be there
    :param value: what the attribute is meanwhile
    """
    original = getattr(owner, name, _MISSING)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if original is _MISSING:
            delattr(owner, name)
        else:
            setattr(owner, name, original)


@contextmanager
def registered_children() -> Iterator[None]:
    """
    ``benchmark`` starts ``python enjoy.py``, ``record_training`` starts ``python -m rl_zoo3.record_video``: there may be no
    such file and no such Python, and REINFORCE is not registered in it. They run in this process instead.
    """
    from sb3_reinforce.zoo.cli import main

    def call(command: Sequence[str], *args: Any, **kwargs: Any) -> int:
        script = next((word for word in command if word in VERB_OF_SCRIPT), None)
        if script is None:
            return original(command, *args, **kwargs)
        try:
            return main([VERB_OF_SCRIPT[script], *command[command.index(script) + 1 :]])
        except SystemExit as end:
            return end.code if isinstance(end.code, int) else int(end.code is not None)
        except Exception:
            traceback.print_exc()
            return 1

    original = subprocess.call
    with replaced(subprocess, "call", call):
        yield


@contextmanager
def ffmpeg_on_path() -> Iterator[None]:
    """
    ``record_training`` and ``push_to_hub`` call ``ffmpeg`` by its name. Where there is none, that of imageio-ffmpeg, which
    comes with moviepy, is put on PATH.
    """
    if shutil.which("ffmpeg") is not None or find_spec("imageio_ffmpeg") is None:
        yield
        return
    import imageio_ffmpeg

    executable = Path(imageio_ffmpeg.get_ffmpeg_exe())
    with tempfile.TemporaryDirectory() as folder:
        os.symlink(executable, Path(folder, f"ffmpeg{executable.suffix if os.name == 'nt' else ''}"))
        path = os.environ.get("PATH", "")
        os.environ["PATH"] = os.pathsep.join(filter(None, [path, folder]))
        try:
            yield
        finally:
            os.environ["PATH"] = path


@contextmanager
def steps_as_trained() -> Iterator[None]:
    """``benchmark`` and ``push_to_hub`` tell the config's number of training steps, also where ``train -n`` gave another."""
    import rl_zoo3.utils
    import yaml

    def get_saved_hyperparams(stats_path: str, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], str | None]:
        hyperparams, path = original(stats_path, *args, **kwargs)
        file = Path(stats_path, "args.yml")
        if hyperparams and file.is_file():
            with file.open() as stream:
                given = yaml.load(stream, Loader=yaml.UnsafeLoader).get("n_timesteps", -1)
            if given > 0:
                hyperparams["n_timesteps"] = given
        return hyperparams, path

    original = rl_zoo3.utils.get_saved_hyperparams
    # the two import it from different places
    with replaced(rl_zoo3.utils, original.__name__, get_saved_hyperparams):
        with replaced(rl_zoo3, original.__name__, get_saved_hyperparams):
            yield


def add_config_env_kwargs(options: argparse.Namespace, run_folder: str) -> None:
    """
    ``record_video`` and ``push_to_hub`` know the environment's arguments from the command line of ``train``, not those of its
    config. Here they come to the command's own, which are known to be the last word.

    :param options: parsed arguments of the command
    :param run_folder: where the model is
    """
    from rl_zoo3.utils import get_saved_hyperparams

    saved = get_saved_hyperparams(os.path.join(run_folder, options.env))[0].get("env_kwargs") or {}
    options.env_kwargs = {**saved, **(options.env_kwargs or {})}


@contextmanager
def hub_metadata() -> Iterator[None]:
    """``push_to_hub`` imports ``generate_metadata``, which huggingface_sb3 has renamed, and wants a dict of it."""
    # `import huggingface_sb3.push_to_hub as hub` would give the function of that name
    hub = importlib.import_module("huggingface_sb3.push_to_hub")
    if hasattr(hub, "generate_metadata"):
        yield
        return

    def generate_metadata(*args: Any) -> dict[str, Any]:
        return hub._generate_metadata(*args).to_dict()

    with replaced(hub, "generate_metadata", generate_metadata):
        yield


@contextmanager
def card_with_our_commands() -> Iterator[None]:
    """The model card of ``push_to_hub`` names commands of RL Zoo's, which does not know REINFORCE."""
    from huggingface_hub import repocard

    def metadata_save(path: Path, data: dict[str, Any]) -> None:
        # the zoo has just written the card, into a folder that is named like the repository
        path.write_text(our_commands(path.read_text(encoding="utf-8"), path.parent.name), encoding="utf-8")
        original(path, data)

    original = repocard.metadata_save
    with replaced(repocard, "metadata_save", metadata_save):
        yield


def our_commands(card: str, repo_name: str) -> str:
    """
    :param card: a model card as RL Zoo writes it
    :param repo_name: the repository's name without the organisation
    :return: the card with commands that can be run; unchanged for other algorithms
    """

    def command(match: re.Match[str]) -> str:
        verb, arguments = VERB_OF_SCRIPT[match["script"]], match["arguments"].rstrip()
        if verb in ("push", "pull"):  # without it they look for ALGO-ENV
            arguments += f" -name {repo_name}"
        trust = "TRUST_REMOTE_CODE=True " if verb == "pull" else ""
        return f"{trust}sb3-reinforce {verb}{arguments}"

    changed = re.sub(r"python -m (?P<script>rl_zoo3\.\w+)(?P<arguments> --algo reinforce .*)", command, card)
    if changed == card:
        return card
    changed = changed.replace("pip install rl_zoo3", 'pip install "sb3-reinforce[zoo]"')
    return changed.replace(
        "Install the RL Zoo (with SB3 and SB3-Contrib):",
        "Install sb3-reinforce, which registers REINFORCE with the RL Zoo. A model may run code when it is loaded: "
        "`TRUST_REMOTE_CODE=True` says that you trust this one.",
    )


@contextmanager
def optional_statistics() -> Iterator[None]:
    """``load_from_hub`` takes a repository without ``vec_normalize.pkl`` for one by an error that the Hub no longer raises."""
    import huggingface_sb3
    import rl_zoo3.load_from_hub
    from huggingface_hub.errors import EntryNotFoundError
    from requests.exceptions import HTTPError

    def load_from_hub(repo_id: str, filename: str) -> str:
        try:
            return original(repo_id, filename)
        except EntryNotFoundError as error:
            if isinstance(error, HTTPError):
                raise
            raise HTTPError(f"{repo_id} has no {filename}") from error

    original = huggingface_sb3.load_from_hub
    # the zoo's module runs anew for `pull`; other commands call the function of the one that is imported
    with replaced(huggingface_sb3, "load_from_hub", load_from_hub):
        with replaced(rl_zoo3.load_from_hub, "load_from_hub", load_from_hub):
            yield


# by RL Zoo's module
MENDS: dict[str, tuple[Callable[[], AbstractContextManager[None]], ...]] = {
    "enjoy": (optional_statistics,),
    "benchmark": (registered_children, steps_as_trained, optional_statistics),
    "record_training": (registered_children, ffmpeg_on_path),
    "push_to_hub": (hub_metadata, steps_as_trained, card_with_our_commands, ffmpeg_on_path),
    "load_from_hub": (optional_statistics,),
}
