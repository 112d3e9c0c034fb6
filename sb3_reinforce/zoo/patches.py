"""
Temporary patches of RL Zoo, and of the packages that its commands call, applied around one run of a command.

``PATCHES`` names the release that each is for. ``tests/test_patches.py`` has for each a test ``test_NAME_alone`` which shows
that the release still fails without the patch. When that test fails, delete the patch that it names.
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
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial, partialmethod
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

# RL Zoo's scripts, as its commands start them and its model cards name them, and our verbs
VERB_OF_SCRIPT = {
    "enjoy.py": "enjoy",
    "rl_zoo3.enjoy": "enjoy",
    "rl_zoo3.record_video": "record-video",
    "rl_zoo3.load_from_hub": "pull",
    "rl_zoo3.push_to_hub": "push",
    "rl_zoo3.train": "train",
}
# Replace an attribute, which need not exist, within a `with` block: replaced(owner, name, value)
replaced = partial(mock.patch.object, create=True)


@contextmanager
def registered_children(main: Callable[[Sequence[str]], int]) -> Iterator[None]:
    """
    Run the commands that RL Zoo starts as child processes in this process, by our ``main``.

    ``benchmark`` starts ``python enjoy.py`` and ``record_training`` starts ``python -m rl_zoo3.record_video``. That file and
    a Python of that name may not exist, and neither child knows REINFORCE.
    """

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
    """Put the ``ffmpeg`` that comes with moviepy on PATH if there is none: RL Zoo calls it by its name."""
    if shutil.which("ffmpeg") is not None or find_spec("imageio_ffmpeg") is None:
        yield
        return
    import imageio_ffmpeg  # optional: the extra `video`

    executable = Path(imageio_ffmpeg.get_ffmpeg_exe())
    with tempfile.TemporaryDirectory() as folder:
        os.symlink(executable, Path(folder, f"ffmpeg{executable.suffix if os.name == 'nt' else ''}"))
        path = os.pathsep.join(filter(None, [os.environ.get("PATH"), folder]))
        with mock.patch.dict(os.environ, PATH=path):
            yield


@contextmanager
def steps_as_trained() -> Iterator[None]:
    """Report the number of training steps of ``train -n``, where ``benchmark`` and ``push_to_hub`` report the config's."""
    import rl_zoo3.utils
    import yaml

    def get_saved_hyperparams(stats_path: str, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], str | None]:
        hyperparams, path = original(stats_path, *args, **kwargs)
        file = Path(stats_path, "args.yml")
        if hyperparams and file.is_file():
            given = yaml.load(file.read_text(), Loader=yaml.UnsafeLoader).get("n_timesteps", -1)
            if given > 0:
                hyperparams["n_timesteps"] = given
        return hyperparams, path

    original = rl_zoo3.utils.get_saved_hyperparams
    # the two commands import it from different places
    name = original.__name__
    with replaced(rl_zoo3.utils, name, get_saved_hyperparams), replaced(rl_zoo3, name, get_saved_hyperparams):
        yield


@contextmanager
def timesteps_kept(algorithm: type) -> Iterator[None]:
    """Let ``train -i`` count steps from where the loaded agent stopped; RL Zoo restarts its count at 0."""
    learn = partialmethod(algorithm.learn, reset_num_timesteps=False)  # type: ignore[attr-defined]
    with replaced(algorithm, "learn", learn):
        yield


def add_config_env_kwargs(options: argparse.Namespace, run_folder: str) -> None:
    """
    Add the ``env_kwargs`` of the run's config to those on the command line, which win.

    ``record_video`` and ``push_to_hub`` take only those that were on the command line of ``train``.
    """
    from rl_zoo3.utils import get_saved_hyperparams

    saved = get_saved_hyperparams(os.path.join(run_folder, options.env))[0].get("env_kwargs") or {}
    options.env_kwargs = {**saved, **(options.env_kwargs or {})}


def absolute_output_folder(options: argparse.Namespace) -> None:
    """Make ``-o`` of ``record_training`` absolute: ffmpeg looks for a relative one beside the list of videos."""
    options.output_folder = str(Path(options.output_folder).absolute())


@contextmanager
def hub_metadata() -> Iterator[None]:
    """Give ``push_to_hub`` the function ``generate_metadata``, which huggingface_sb3 has renamed, returning a dict."""
    # `import huggingface_sb3.push_to_hub as hub` would give the function of that name
    hub = importlib.import_module("huggingface_sb3.push_to_hub")
    generate = getattr(hub, "generate_metadata", lambda *args: hub._generate_metadata(*args).to_dict())
    with replaced(hub, "generate_metadata", generate):
        yield


@contextmanager
def card_with_our_commands() -> Iterator[None]:
    """Write our commands into the model card of ``push_to_hub``: RL Zoo's own do not know REINFORCE."""
    from huggingface_hub import repocard

    def metadata_save(path: Path, data: dict[str, Any]) -> None:
        # the zoo has just written the card, into a folder named like the repository
        path.write_text(our_commands(path.read_text(encoding="utf-8"), path.parent.name), encoding="utf-8")
        original(path, data)

    original = repocard.metadata_save
    with replaced(repocard, "metadata_save", metadata_save):
        yield


def our_commands(card: str, repo_name: str) -> str:
    """:return: one of RL Zoo's model cards with commands that can be run; unchanged for other algorithms"""

    def command(match: re.Match[str]) -> str:
        verb, arguments = VERB_OF_SCRIPT[match[1]], match[2].rstrip()
        if verb in ("push", "pull"):  # without a name they look for ALGO-ENV
            arguments += f" -name {repo_name}"
        return f"sb3-reinforce {verb}{arguments}"

    changed = re.sub(r"python -m (rl_zoo3\.\w+)( --algo reinforce .*)", command, card)
    if changed == card:
        return card
    changed = changed.replace("pip install rl_zoo3", 'pip install "sb3-reinforce[zoo]"')
    return changed.replace(
        "Install the RL Zoo (with SB3 and SB3-Contrib):",
        "Install sb3-reinforce, which registers REINFORCE with the RL Zoo. It runs no code of a model without `--trust`.",
    )


@contextmanager
def optional_statistics() -> Iterator[None]:
    """Let ``load_from_hub`` load a repository without ``vec_normalize.pkl``, where it expects an error of an older Hub."""
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
    # `pull` runs the zoo's module anew; other commands call the function of the module that is already imported
    zoo = rl_zoo3.load_from_hub
    with replaced(huggingface_sb3, "load_from_hub", load_from_hub), replaced(zoo, "load_from_hub", load_from_hub):
        yield


def downloads() -> AbstractContextManager[Any]:
    """Let ``load_from_hub`` download without ``TRUST_REMOTE_CODE``: it loads nothing, and we load nothing that runs code."""
    return mock.patch.dict(os.environ, TRUST_REMOTE_CODE="True")


class Patch(NamedTuple):
    """A patch, and what it is for."""

    function: Callable[..., Any]
    upstream: str  # the release that needs it, as pinned in constraints.txt
    modules: tuple[str, ...] = ()  # RL Zoo's modules that `patched` runs inside it; none where our code calls the patch


PATCHES = (
    Patch(registered_children, "rl_zoo3==2.9.2"),
    Patch(ffmpeg_on_path, "rl_zoo3==2.9.2", ("record_training", "push_to_hub")),
    Patch(steps_as_trained, "rl_zoo3==2.9.2", ("benchmark", "push_to_hub")),
    Patch(timesteps_kept, "rl_zoo3==2.9.2"),
    Patch(add_config_env_kwargs, "rl_zoo3==2.9.2"),
    Patch(absolute_output_folder, "rl_zoo3==2.9.2"),
    Patch(hub_metadata, "sb3-team-hf-integration==3.2", ("push_to_hub",)),
    Patch(card_with_our_commands, "rl_zoo3==2.9.2", ("push_to_hub",)),
    Patch(optional_statistics, "huggingface_hub==2.4.0", ("enjoy", "benchmark", "load_from_hub")),
    Patch(downloads, "sb3-team-hf-integration==3.2", ("enjoy", "benchmark", "load_from_hub")),
)


@contextmanager
def patched(module: str) -> Iterator[None]:
    """Apply the patches of one of RL Zoo's modules."""
    with ExitStack() as stack:
        for patch in PATCHES:
            if module in patch.modules:
                stack.enter_context(patch.function())
        yield
