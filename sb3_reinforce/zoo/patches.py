"""
Temporary patches of RL Zoo, and of the packages that its commands call, applied around one run of a command.

``PATCHES`` names the release that each is for. ``tests/test_patches*.py`` have for each a test ``test_NAME_alone`` which
shows that the release still fails without the patch. When that test fails, delete the patch that it names.
"""

import argparse
import importlib
import os
import pickle
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

import numpy as np

from sb3_reinforce.running.checkpoint_file import checkpoints_in, steps_of
from sb3_reinforce.tracking.settings import as_setting, holds_secret, masked_text
from sb3_reinforce.zoo.checkpoints import FOLDER
from sb3_reinforce.zoo.model_card import VERB_OF_SCRIPT, our_card

# Replace an attribute, which need not exist, within a `with` block: replaced(owner, name, value)
replaced = partial(mock.patch.object, create=True)


@contextmanager
def environment(**variables: str) -> Iterator[None]:
    """
    Inside, these environment variables are set.

    Only they are put back: W&B keeps the address of its process in another one, which mock.patch.dict would put back, too.
    """
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def registered_children(main: Callable[[Sequence[str]], int]) -> Iterator[None]:
    """
    Run the commands that RL Zoo starts as child processes in this process, by our ``main``.

    ``benchmark`` starts ``python enjoy.py`` and ``record_training`` starts ``python -m rl_zoo3.record_video``. That file and
    a Python of that name may not exist, and neither child knows REINFORCE.
    """

    def call(command: Sequence[str], *args: Any, **kwargs: Any) -> int:
        command = [getattr(word, "gym_id", word) for word in command]
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
        with environment(PATH=path):
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
def namespaced_ids() -> Iterator[None]:
    """
    Let ``benchmark`` find the runs of environments such as ``ALE/Pong-v5``, in folders such as ``ALE-Pong-v5_1``: it looks for
    the id itself, in which the slash stands for a folder.
    """
    import rl_zoo3.utils as zoo
    from huggingface_sb3 import EnvironmentName
    from pytablewriter import MarkdownTableWriter  # comes with RL Zoo's plots

    def named(find: Callable[..., dict[str, tuple[str, str]]]) -> Callable[..., dict[str, tuple[str, str]]]:
        def find_models(*args: Any, **kwargs: Any) -> dict[str, tuple[str, str]]:
            return {name: (algo, EnvironmentName(env_id)) for name, (algo, env_id) in find(*args, **kwargs).items()}

        return find_models

    def from_dataframe(writer: Any, table: Any, *args: Any, **kwargs: Any) -> None:
        original(writer, table.map(lambda cell: getattr(cell, "gym_id", cell)), *args, **kwargs)

    original = MarkdownTableWriter.from_dataframe
    with (
        replaced(zoo, "get_trained_models", named(zoo.get_trained_models)),
        replaced(zoo, "get_hf_trained_models", named(zoo.get_hf_trained_models)),
        replaced(MarkdownTableWriter, "from_dataframe", from_dataframe),
    ):
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
        card = path.read_text(encoding="utf-8")
        if "--algo reinforce" in card:
            path.write_text(our_card(card, path.parent), encoding="utf-8")
        original(path, data)

    original = repocard.metadata_save
    with replaced(repocard, "metadata_save", metadata_save):
        yield


@contextmanager
def uploads_masked() -> Iterator[None]:
    """Mask secrets in the settings and the card that ``push_to_hub`` uploads: the zoo's ``args.yml`` has the command line."""
    import yaml
    from huggingface_hub import HfApi

    def upload_folder(api: Any, *, folder_path: Path, **kwargs: Any) -> Any:
        for file in map(Path(folder_path).joinpath, ("args.yml", "config.yml", "env_kwargs.yml")):
            settings = yaml.load(file.read_text(), Loader=yaml.UnsafeLoader)  # as the zoo reads the same files of the run
            if holds_secret(settings):
                file.write_text(yaml.dump(as_setting(settings)))
        card = Path(folder_path, "README.md")
        card.write_text(masked_text(card.read_text(encoding="utf-8")), encoding="utf-8")
        return original(api, folder_path=folder_path, **kwargs)

    original = HfApi.upload_folder
    with replaced(HfApi, "upload_folder", upload_folder):
        yield


@contextmanager
def optional_statistics() -> Iterator[None]:
    """Let ``load_from_hub`` load a repository without ``vec_normalize.pkl``, where it expects an error of an older Hub."""
    import huggingface_sb3
    import rl_zoo3.load_from_hub
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
    from requests.exceptions import HTTPError

    def load_from_hub(repo_id: str, filename: str) -> str:
        try:
            return original(repo_id, filename)
        except EntryNotFoundError as error:
            if isinstance(error, HTTPError | LocalEntryNotFoundError):  # the latter: the Hub was not reached
                raise
            raise HTTPError(f"{repo_id} has no {filename}") from error

    original = huggingface_sb3.load_from_hub
    # `pull` runs the zoo's module anew; other commands call the function of the module that is already imported
    zoo = rl_zoo3.load_from_hub
    with replaced(huggingface_sb3, "load_from_hub", load_from_hub), replaced(zoo, "load_from_hub", load_from_hub):
        yield


def downloads() -> AbstractContextManager[Any]:
    """Let ``load_from_hub`` download without ``TRUST_REMOTE_CODE``: it loads nothing, and we load nothing that runs code."""
    return environment(TRUST_REMOTE_CODE="True")


@contextmanager
def missing_runs_named() -> Iterator[None]:
    """Write "no run" into the table of ``all_plots`` where an algorithm has none; RL Zoo writes "0.0 +/- 0.0"."""
    from pytablewriter import MarkdownTableWriter  # comes with RL Zoo's plots

    def write_table(writer: Any, *args: Any, **kwargs: Any) -> None:
        for row in writer.value_matrix:  # in place: the zoo saves it, too
            row[:] = ["no run" if cell == "0.0 +/- 0.0" else cell for cell in row]  # a result has no decimals
        original(writer, *args, **kwargs)

    original = MarkdownTableWriter.write_table
    with replaced(MarkdownTableWriter, "write_table", write_table):
        yield


@contextmanager
def single_evaluations() -> Iterator[None]:
    """Let ``all_plots`` read evaluations of one episode each: it would average over runs, or fail. Read, they count twice."""

    def load(*args: Any, **kwargs: Any) -> Any:
        found = original(*args, **kwargs)
        if "results" not in found or found["results"].shape[1:] != (1,):
            return found
        return {name: np.repeat(found[name], found[name].ndim, axis=-1) for name in found}  # `timesteps` has one axis

    original = np.load
    with replaced(np, "load", load):
        yield


@contextmanager
def single_runs() -> Iterator[None]:
    """Let ``plot_from_file`` draw a curve of one run: ``all_plots`` saves its result as a number, not as a list of one."""

    def as_arrays(results: Any) -> Any:
        for curves in results.values() if isinstance(results, dict) else ():
            for curve in curves.values():
                if "last_evals" in curve:
                    curve["last_evals"] = np.atleast_1d(curve["last_evals"])
        return results

    dump, load = pickle.dump, pickle.load
    with replaced(pickle, "dump", lambda results, *args, **kwargs: dump(as_arrays(results), *args, **kwargs)):
        with replaced(pickle, "load", lambda *args, **kwargs: as_arrays(load(*args, **kwargs))):
            yield


class RunId(int):
    """The number of a run, and what ``train --uuid`` adds to it in the name of the run's folder: ``2_1b4e28ba-2fa1-...``."""

    text: str

    def __new__(cls, text: str) -> "RunId":
        run_id = super().__new__(cls, text.partition("_")[0])
        run_id.text = text
        return run_id

    def __str__(self) -> str:
        return self.text

    def __format__(self, spec: str) -> str:
        return self.text


@contextmanager
def models_of_train() -> Iterator[None]:
    """
    Find the runs of ``train --uuid``, and the checkpoints that ``train`` makes to resume from.

    RL Zoo looks for folders that end in a number, and for checkpoints of ``--save-freq``.
    """
    import rl_zoo3.utils as zoo
    from huggingface_sb3 import ModelName

    def get_latest_run_id(log_path: str, env_name: str) -> int:
        names = [folder.name.removeprefix(f"{env_name}_") for folder in Path(log_path).glob(f"{env_name}_*")]
        found = [RunId(name) for name in names if re.fullmatch(r"\d+(_[0-9a-f-]{36})?", name)]

        def when(run_id: RunId) -> tuple[int, float]:
            file = Path(log_path, f"{env_name}_{run_id}", env_name, "args.yml")
            return int(run_id), file.stat().st_mtime if file.is_file() else 0.0

        return max(found, key=when, default=0)

    def get_model_path(
        exp_id: int,
        folder: str,
        algo: str,
        env_name: str,
        load_best: bool = False,
        load_checkpoint: str | None = None,
        load_last_checkpoint: bool = False,
    ) -> tuple[str, str, str]:
        try:
            return find(exp_id, folder, algo, env_name, load_best, load_checkpoint, load_last_checkpoint)
        except ValueError:
            top = Path(folder, algo)
            exp_id = exp_id or get_latest_run_id(str(top), env_name)
            run = top / f"{env_name}_{exp_id}" if exp_id > 0 else top
            for file in checkpoints_in(run / FOLDER) if not load_best else []:
                if load_last_checkpoint or load_checkpoint == steps_of(file):
                    return f"checkpoint-{steps_of(file)}-{ModelName(algo, env_name)}", str(file), str(run)
            raise

    find = zoo.get_model_path
    with replaced(zoo, "get_model_path", get_model_path), replaced(zoo, "get_latest_run_id", get_latest_run_id):
        yield


class Patch(NamedTuple):
    """A patch, and what it is for."""

    function: Callable[..., Any]
    upstream: str  # the release that needs it, as pinned in constraints.txt
    modules: tuple[str, ...] = ()  # RL Zoo's modules that `patched` runs inside it; none where our code calls the patch


PATCHES = (
    Patch(registered_children, "rl_zoo3==2.9.2"),
    Patch(ffmpeg_on_path, "rl_zoo3==2.9.2", ("record_training", "push_to_hub")),
    Patch(steps_as_trained, "rl_zoo3==2.9.2", ("benchmark", "push_to_hub")),
    Patch(namespaced_ids, "rl_zoo3==2.9.2", ("benchmark",)),
    Patch(timesteps_kept, "rl_zoo3==2.9.2"),
    Patch(add_config_env_kwargs, "rl_zoo3==2.9.2"),
    Patch(absolute_output_folder, "rl_zoo3==2.9.2"),
    Patch(hub_metadata, "sb3-team-hf-integration==3.2", ("push_to_hub",)),
    Patch(card_with_our_commands, "rl_zoo3==2.9.2", ("push_to_hub",)),
    Patch(missing_runs_named, "rl_zoo3==2.9.2", ("plots.all_plots", "plots.plot_from_file")),
    Patch(single_evaluations, "rl_zoo3==2.9.2", ("plots.all_plots",)),
    Patch(single_runs, "rl_zoo3==2.9.2", ("plots.all_plots", "plots.plot_from_file")),
    Patch(models_of_train, "rl_zoo3==2.9.2", ("enjoy", "benchmark", "record_video", "record_training", "push_to_hub")),
    Patch(uploads_masked, "rl_zoo3==2.9.2", ("push_to_hub",)),
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
