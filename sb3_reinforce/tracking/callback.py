"""``WandbCallback``: a W&B run around one ``learn``, with the settings that decide a result and SB3's metrics."""

import inspect
import os
import platform
import subprocess
import warnings
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_reinforce.tracking.writer import WandbOutputFormat

if TYPE_CHECKING:
    import wandb

Mode = Literal["auto", "online", "offline", "disabled"]

# Of the constructor's arguments these are objects, or say nothing about the result
_NOT_IN_CONFIG = {"self", "policy", "env", "verbose", "tensorboard_log", "_init_setup_model"}
_LIBRARIES = ("sb3-reinforce", "stable-baselines3", "gymnasium", "torch", "numpy")


class WandbCallback(BaseCallback):
    """
    Tracks ``learn`` in Weights & Biases: settings, library versions, and every metric that SB3's logger dumps.

    If a run is active already (``wandb.init`` was called before) it is used and left open. Otherwise the callback
    starts one when training starts and finishes it when training ends; each ``learn`` then is a run of its own. If
    ``learn`` raises, SB3 does not tell its callbacks: call ``finish(exit_code=1)``, or leave it to the end of the process.

    Tracking never stops training and never asks anything on the terminal: what fails is warned about, once. A server
    that does not answer within 20 s leaves an offline run, to be uploaded later with ``wandb sync``.

    :param project: the W&B project
    :param entity: the user or team that owns the project; None is the account's default
    :param name: the run's name; None lets W&B invent one
    :param group: the name that runs of one study share
    :param tags: labels of the run
    :param mode: ``"online"``, ``"offline"``, ``"disabled"``, or ``"auto"``: as WANDB_MODE or
        ``wandb offline`` asks, else online where an API key is configured, else offline
    :param config: more settings to keep with the run; they take the place of those read from the model
    :param finish_at_end: finish the run with training; with False that is left to ``finish``, so that a final
        evaluation can still be logged
    :param verbose: 0 is silent, 1 shows where the run is kept, 2 all that W&B prints
    :raises ImportError: if wandb is not installed
    :raises ValueError: if the mode is none of the four
    """

    # one run for all processes of torchrun
    rank_zero_only = True

    def __init__(
        self,
        project: str = "sb3-reinforce",
        entity: str | None = None,
        name: str | None = None,
        group: str | None = None,
        tags: Sequence[str] = (),
        mode: Mode = "auto",
        config: Mapping[str, Any] | None = None,
        finish_at_end: bool = True,
        verbose: int = 1,
    ) -> None:
        super().__init__(verbose)
        if mode not in get_args(Mode):
            raise ValueError(f"mode must be one of {', '.join(get_args(Mode))}, got {mode!r}")
        try:
            import wandb
        except ImportError as error:
            raise ImportError('WandbCallback needs wandb: pip install "sb3-reinforce[wandb]"') from error
        self.project = project
        self.entity = entity
        self.name = name
        self.group = group
        self.tags = tuple(tags)
        self.mode = mode
        self.config = dict(config or {})
        self.finish_at_end = finish_at_end
        self.run: wandb.Run | None = None
        # these two stay known after the run was finished
        self.run_dir: Path | None = None
        self.run_url: str | None = None
        self._owns_run = False
        self._writer: WandbOutputFormat | None = None

    def _on_training_start(self) -> None:
        import wandb

        if self.run is not None and self._owns_run:
            # still open: the last learn() raised before its end, or finish_at_end is False and finish was not called
            self.finish(exit_code=1)
        self._owns_run = wandb.run is None
        self.run = self._start_run() if self._owns_run else wandb.run
        if self.run is None:
            return
        try:
            if not self.run.disabled:
                # the run's `dir` is its folder for files, one level below
                self.run_dir = Path(self.run.dir).parent
                self.run_url = None if self.run.offline else self.run.url
            total_timesteps = self.locals["total_timesteps"]
            # setdefaults: what the user put there stays
            self.run.config.setdefaults({**_settings(self.model), "total_timesteps": total_timesteps, **self.config})
        except Exception as error:
            _warn("the settings were not recorded", error)
        self._writer = WandbOutputFormat(self.run)
        self.logger.output_formats.append(self._writer)

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        self._detach()
        if self.finish_at_end:
            self.finish()

    def log_summary(self, values: Mapping[str, float]) -> None:
        """
        Put single numbers, such as a final evaluation's, beside the run's name in W&B's table of runs.

        :param values: names and numbers; where no run is open nothing happens
        """
        if self.run is None:
            return
        try:
            self.run.summary.update(dict(values))
        except Exception as error:
            _warn("the summary was not recorded", error)

    def finish(self, exit_code: int = 0) -> None:
        """
        End the run, if this callback started it. A second call does nothing.

        :param exit_code: 0 for success; anything else marks the run as failed
        """
        self._detach()
        run, self.run = self.run, None
        if run is None or not self._owns_run:
            return
        try:
            run.finish(exit_code=exit_code)
        except Exception as error:
            _warn("the run was not finished cleanly", error)

    def _detach(self) -> None:
        # A custom logger outlives learn(): without this a second learn() would write every row twice
        if self._writer is not None and self._writer in self.logger.output_formats:
            self.logger.output_formats.remove(self._writer)
        self._writer = None

    def _start_run(self) -> "wandb.Run | None":
        mode = self._resolved_mode()
        if mode != "online":
            # W&B's own crash reports look up a host even offline, and the first run of a process starts them
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        modes = ("online", "offline") if mode == "online" else (mode,)
        for attempt in modes:
            try:
                return self._init(attempt)
            except Exception as error:
                next_step = "the run is kept offline" if attempt == "online" else "this training is not tracked"
                _warn(f"could not start {attempt}, {next_step}", error)
        return None

    def _init(self, mode: str) -> "wandb.Run":
        import wandb

        # wandb.init changes the Settings that it is given: make them anew for each attempt. The default time limits
        # are 90 s for the start and none for the end, during which nothing trains.
        settings = wandb.Settings(init_timeout=20, finish_timeout=60, silent=self.verbose < 1, quiet=self.verbose < 2)
        return wandb.init(
            project=self.project,
            entity=self.entity,
            name=self.name,
            group=self.group,
            tags=self.tags,
            mode=mode,  # type: ignore[arg-type]
            settings=settings,
        )

    def _resolved_mode(self) -> str:
        """
        The mode to start in, found without a question and without the network.

        :return: online (a key is there), offline or disabled
        """
        if self.mode in ("offline", "disabled"):
            return self.mode
        try:
            wished, has_key = _mode_and_key()
        except Exception as error:
            _warn("the API key cannot be read, the run is kept offline", error)
            return "offline"
        if self.mode == "auto" and wished in ("offline", "disabled"):
            return wished
        if has_key:
            return "online"
        if self.mode == "online":
            # wandb.init(mode="online") would wait for a person at the terminal
            warnings.warn("W&B: no API key is configured (`wandb login`), the run is kept offline", stacklevel=2)
        return "offline"


def _mode_and_key() -> tuple[str, bool]:
    """
    What W&B itself would go by: environment variables, its settings files, netrc.

    This is the look-up beneath ``wandb.login(prompt=False)``, which rewrites the user's settings file and, where there
    is a key, asks the server about it for up to several seconds.

    :return: online, offline or disabled; and whether there are credentials for the configured server
    """
    from wandb.sdk import wandb_setup
    from wandb.sdk.lib import wbauth

    settings = wandb_setup.singleton().settings
    # W&B's older names for two of the modes
    mode = {"dryrun": "offline", "run": "online"}.get(settings.mode, settings.mode)
    credentials = wbauth.authenticate_session(
        host=settings.base_url, source="WandbCallback", prompt=False, update_session=False
    )
    return mode, credentials is not None


def _warn(consequence: str, error: Exception) -> None:
    warnings.warn(f"W&B: {consequence}, training goes on ({type(error).__name__}: {error})", stacklevel=3)


def _settings(model: BaseAlgorithm) -> dict[str, Any]:
    """
    What decides a result: the algorithm's arguments, the environment, the versions.

    :param model: the algorithm about to train
    :return: names and plain values (numbers, strings, lists and dicts of them)
    """
    arguments = {
        name: _plain(getattr(model, name))
        for name in inspect.signature(type(model)).parameters
        if name not in _NOT_IN_CONFIG and hasattr(model, name)
    }
    return {
        "algo": type(model).__name__,
        "policy": model.policy_class.__name__,
        **arguments,
        "device": str(model.device),
        **_environment(model),
        "n_envs": model.n_envs,
        "versions": _versions(),
        "git_commit": _git_commit(),
    }


def _plain(value: Any) -> Any:
    """
    A setting as W&B can keep it.

    :param value: an argument of an algorithm
    :return: numbers, strings and None as they are, containers of them likewise, all else by its name or its repr
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return getattr(value, "__name__", None) or repr(value)


def _environment(model: BaseAlgorithm) -> dict[str, str]:
    """
    The environment's id, where it can be had without risk.

    A worker of ``SubprocVecEnv`` would die of an ``EnvSpec`` that cannot be pickled, so only environments in this
    process are asked.

    :param model: the algorithm about to train
    :return: {"env_id": ...}, or nothing
    """
    env = model.env.unwrapped if model.env is not None else None
    spec = env.envs[0].spec if isinstance(env, DummyVecEnv) else None
    return {"env_id": spec.id} if spec is not None else {}


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for library in _LIBRARIES:
        try:
            versions[library] = version(library)
        except PackageNotFoundError:  # run from a checkout that was not installed
            continue
    return versions


def _git_commit() -> str | None:
    """
    The commit of the user's project, that is of the working directory.

    :return: the full hash, or None outside a repository, before its first commit, or without git
    """
    try:
        answer = subprocess.run(["git", "rev-parse", "--verify", "HEAD"], capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None
