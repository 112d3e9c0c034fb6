"""``WandbCallback``: what SB3's ``learn`` logs to a W&B run, and when."""

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, get_args
from weakref import WeakSet

import gymnasium as gym
import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import GymEnv

from sb3_reinforce.arguments import check_count
from sb3_reinforce.episodic import EpisodicAlgorithm
from sb3_reinforce.tracking.media import make_video_env
from sb3_reinforce.tracking.rows import Progress, Rows
from sb3_reinforce.tracking.run import FAILED, FINISHED, Mode, OpenRun, Warner, exit_code_of, start_run
from sb3_reinforce.tracking.settings import as_setting, model_settings

if TYPE_CHECKING:
    import optuna
    import wandb
    from stable_baselines3.common.base_class import BaseAlgorithm

# More rows of single episodes would slow training, and could not be told apart
MAX_EPISODE_RATE = 10.0
# Callbacks with an open run
_OPEN: "WeakSet[WandbCallback]" = WeakSet()


class WandbCallback(BaseCallback):
    """
    Tracks ``learn`` of any SB3 algorithm in Weights & Biases.

    - One row for each ``logger.dump``, that is for each update with REINFORCE: SB3's metrics under their names; mean, std,
      min, max and histogram of the raw returns and lengths of the episodes since the last row; every ``histogram_freq`` rows
      histograms of the steps' returns, actions and advantages. The x-axis is ``global_step``.
    - Between them single episodes (``episode/return``, ``episode/length``), at most ``episode_rate`` a second.
    - Evaluations of an ``EvalCallback``; the best one is in the summary.
    - Videos of deterministic episodes, if there is a ``video_env``.
    - The last model and, with an ``EvalCallback``, the best one as artifacts of type ``model`` with the aliases ``last`` and
      ``best``, each with the statistics of its ``VecNormalize``.
    - The settings that decide the result: arguments, environment, versions, git commit, command. What looks like a key is
      masked; environment variables, the program's output and uncommitted changes are not recorded.

    A run that is already active (``wandb.init`` was called before) is used and left open. Otherwise each ``learn`` is a new
    run, from its first rollout to its end, with the state *finished*, *failed* (an error) or *killed* (Ctrl-C, SIGTERM).
    SB3 does not tell callbacks when ``learn`` raises: an error that ends the process is noticed at exit. If the program
    continues after the error, use the callback as a context manager::

        with WandbCallback() as tracker:
            model.learn(100_000, callback=tracker)

    Tracking never stops training, never makes it wait and never asks anything on the terminal: background threads call W&B,
    a failure is warned about once, and everything logged is kept in the run's folder. If the server does not answer within
    ``init_timeout``, the run is kept offline; ``wandb sync`` uploads it later.

    ``state_dict`` and ``load_state_dict`` carry the run's id: a checkpoint that restores them before the first rollout resumes
    the same run.

    :param project: the W&B project
    :param entity: the user or team that owns the project; None is the account's default
    :param name: the run's name; None lets W&B invent one
    :param group: the name that runs of one study share
    :param tags: labels of the run
    :param mode: ``"online"``, ``"offline"``, ``"disabled"``, or ``"auto"``: as WANDB_MODE or
        ``wandb offline`` asks, else online if an API key is configured, else offline
    :param config: more settings to keep with the run; they replace those read from the model
    :param finish_at_end: finish the run with training; with False call ``finish`` yourself, so that a final evaluation can
        still be logged
    :param episode_rate: at most so many rows of single episodes per second, at most 10; 0: none
    :param histogram_freq: number of update rows from one set of histograms of steps to the next; 0: none
    :param save_models: whether to log the best and the last model
    :param video_env: environment for videos, with ``render_mode="rgb_array"``, or its id; None: no videos. The training
        environment's VecNormalize is applied
    :param video_freq: environment steps from one video to the next; one more shows the end of training
    :param run_id: id of a W&B run to resume; None: a new one
    :param new_run: start a run even if one is active, as parallel trials in one process need it
    :param init_timeout: seconds to wait for the server when the run starts
    :param finish_timeout: seconds to wait for the server when the run ends
    :param verbose: 0 is silent, 1 shows where the run is kept, 2 all that W&B prints
    :raises ImportError: if wandb is not installed
    :raises ValueError: if the mode is none of the four, or for a rate or frequency out of range
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
        episode_rate: float = 4.0,
        histogram_freq: int = 10,
        save_models: bool = True,
        video_env: GymEnv | str | None = None,
        video_freq: int = 100_000,
        run_id: str | None = None,
        new_run: bool = False,
        init_timeout: float = 20.0,
        finish_timeout: float = 60.0,
        verbose: int = 1,
    ) -> None:
        super().__init__(verbose)
        if mode not in get_args(Mode):
            raise ValueError(f"mode must be one of {', '.join(get_args(Mode))}, got {mode!r}")
        if not 0 <= episode_rate <= MAX_EPISODE_RATE:
            raise ValueError(f"episode_rate must be between 0 and {MAX_EPISODE_RATE:g} rows a second, got {episode_rate!r}")
        if isinstance(histogram_freq, bool) or not isinstance(histogram_freq, int | np.integer) or histogram_freq < 0:
            raise ValueError(f"histogram_freq must be a whole number >= 0, got {histogram_freq!r}")
        check_count("video_freq", video_freq)
        for argument, seconds in (("init_timeout", init_timeout), ("finish_timeout", finish_timeout)):
            if not 0 < seconds < float("inf"):
                raise ValueError(f"{argument} must be a number of seconds above 0, got {seconds!r}")
        try:
            import wandb  # noqa: F401
        except ImportError as error:
            raise ImportError('WandbCallback needs wandb: pip install "sb3-reinforce[wandb]"') from error
        self.project = project
        self.entity = entity
        self.name = name
        self.group = group
        self.tags = tuple(tags)
        self.mode: Mode = mode
        self.config = dict(config or {})
        self.finish_at_end = finish_at_end
        self.episode_rate = episode_rate
        self.histogram_freq = histogram_freq
        self.save_models = save_models
        self.video_env = video_env
        self.video_freq = video_freq
        self.new_run = new_run
        self.init_timeout = init_timeout
        self.finish_timeout = finish_timeout
        # these two stay known after the run was finished
        self.run_dir: Path | None = None
        self.run_url: str | None = None
        #: whether REINFORCE is to call this callback at each step; other algorithms always do
        self.needs_steps = True
        self._rows: Rows | None = None
        self._progress = Progress(run_id)
        self._resuming = run_id is not None
        self._start_due = False
        self._next_video = 0
        self._rollout_start = 0.0
        self._warn = Warner()

    def init_callback(self, model: "BaseAlgorithm") -> None:
        """
        Called by ``learn``. Finishes runs of this thread that are still open: their ``learn`` was interrupted, or
        ``finish_at_end`` is False and ``finish`` was not called.

        :param model: about to train
        """
        for each in list(_OPEN):
            run = each._rows and each._rows.run
            if run and run.owned and run.thread == threading.get_ident():
                if each is self or not (each.new_run or run.training_ended):
                    each.finish(exit_code=None)
        super().init_callback(model)

    def _on_training_start(self) -> None:
        self._start_due = True

    def _on_rollout_start(self) -> None:
        # Not before: a checkpoint restores the run's id when all callbacks have started.
        if self._start_due:
            self._start_due = False
            self._rows = self._start()
        if self.num_timesteps >= self._next_video:
            self._next_video = (self.num_timesteps // self.video_freq + 1) * self.video_freq
            self._log_video()
        self._rollout_start = time.monotonic()

    def _on_step(self) -> bool:
        dones = self.locals.get("dones") if self.needs_steps else None
        if self._rows is None or dones is None or not np.count_nonzero(dones):
            return True
        ended = [self.locals["infos"][i].get("episode") for i in np.flatnonzero(dones).tolist()]
        monitored = [(float(episode["r"]), float(episode["l"])) for episode in ended if episode is not None]
        if monitored:
            if not isinstance(self.model, EpisodicAlgorithm):
                self._rows.episodes.extend(monitored)
            self._rows.log_episode(*monitored[-1], self.num_timesteps)
        return True

    def _on_rollout_end(self) -> None:
        if self._rows is None or not isinstance(self.model, EpisodicAlgorithm):
            return
        rollout = self.model.rollout
        # Without those that ended while the algorithm waited for others: they are short, and not used for the update.
        used = [
            (span.end, span.total_reward, span.total_length or span.first_step + span.length)
            for span in rollout.spans
            if not span.cut
        ]
        known = [(end, total, length) for end, total, length in used if total is not None]
        self._rows.episodes.extend((total, length) for _, total, length in known)
        if known and not self.needs_steps:
            end, total, length = max(known, key=lambda episode: episode[0])
            self._rows.log_episode(total, length, self.num_timesteps - (rollout.n_rows - end) * self.model.n_envs)
        # In long rollouts episodes are logged when they end. At CartPole's speed, less than a tenth of a second per rollout,
        # a microsecond in each step is 1 % of training.
        self.needs_steps = time.monotonic() - self._rollout_start > 1.0

    def _on_training_end(self) -> None:
        if self._rows is not None:
            if not self._rows.run.training_ended:
                self._log_video()
                self._rows.end_training()
            self._rows.detach()
        if self.finish_at_end:
            self.finish()

    @property
    def run(self) -> "wandb.Run | None":
        """W&B's run while it is open."""
        return None if self._rows is None else self._rows.run.run

    @property
    def run_id(self) -> str | None:
        """The id of the run, or of the one to resume; known after the run was finished."""
        return self._progress.run_id

    @property
    def best_mean_reward(self) -> float | None:
        """The highest ``eval/mean_reward`` so far."""
        return self._progress.best_mean_reward

    @property
    def training_interrupted(self) -> bool:
        """Whether ``learn`` has begun and not come to its end."""
        return self._rows is not None and not self._rows.run.training_ended

    def log_summary(self, values: Mapping[str, float]) -> None:
        """
        Put single numbers, such as those of a final evaluation, in W&B's table of runs.

        :param values: numbers by name; ignored if no run is open
        """
        if self._rows is not None:
            self._rows.run.log_summary(values)

    def finish(self, exit_code: int | None = FINISHED) -> None:
        """
        End the run, if this callback started it. A second call does nothing.

        It returns within ``finish_timeout`` and some seconds, whatever the server does.

        :param exit_code: 0 for success; 255 (Ctrl-C) and 143 (SIGTERM) say that training was killed, anything else that it
            failed. None: 0 if training came to its end, else 1
        """
        rows = self._rows
        if rows is None:
            return
        if exit_code is None:
            exit_code = FINISHED if rows.run.training_ended else FAILED
        if rows.run.owned and not rows.run.training_ended:
            rows.end_training()
        rows.detach()
        self._rows = None
        _OPEN.discard(self)
        try:
            rows.run.end(exit_code, self.finish_timeout)
        finally:
            rows.models.close()
            self.needs_steps = True
            self._warn = Warner()

    def __enter__(self) -> "WandbCallback":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.finish(exit_code_of(error))

    def state_dict(self) -> dict[str, Any]:
        """:return: what a checkpoint needs to resume the same run: its id, rows written, best evaluation"""
        return {name: value for name, value in asdict(self._progress).items() if value is not None}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """
        Resume a run; to be called before the first rollout.

        :param state_dict: what :meth:`state_dict` returned
        """
        self._progress = Progress(**{**asdict(self._progress), "n_rows": 0, **state_dict})
        self._resuming = self._resuming or "run_id" in state_dict

    def _start(self) -> Rows | None:
        import wandb

        if not self._resuming:
            self._progress = Progress()
        self._resuming, self._next_video = False, 0  # the next learn() is a new run
        started, owned = wandb.run, self.new_run or wandb.run is None
        if owned:
            arguments = {name: getattr(self, name) for name in ("project", "entity", "name", "group", "tags")}
            arguments |= {"id": self.run_id, "reinit": "create_new" if self.new_run else None}
            started = start_run(self.mode, self._warn, self.init_timeout, self.finish_timeout, self.verbose, arguments)
        if started is None:
            return None
        run = OpenRun(started, owned, self._progress.n_rows, self._warn, self.finish)
        self._progress.run_id, self.run_dir, self.run_url = started.id, run.folder, run.url
        if self.verbose == 1 and owned and not started.disabled:
            print(f"W&B run: {run.url or run.folder}", flush=True)
        try:
            total = self.locals["total_timesteps"]
            settings = {**model_settings(self.model), "total_timesteps": total, **as_setting(self.config)}
            # setdefaults: what the user put there stays
            run.submit(lambda: started.config.setdefaults(settings), "the settings were not recorded")
        except Exception as error:
            self._warn("the settings were not recorded", error)
        _OPEN.add(self)
        save_models = self.save_models and not started.disabled
        return Rows(self.model, run, self._progress, self.episode_rate, self.histogram_freq, save_models)

    def _log_video(self) -> None:
        if self._rows is None or self.video_env is None:
            return
        try:
            if isinstance(self.video_env, gym.Env | str):
                self.video_env = make_video_env(self.video_env, self.model)
            self._rows.log_video(self.video_env)  # type: ignore[arg-type]
        except Exception as error:
            self._warn("no videos are recorded", error, about="videos")
            self.video_env = None


def trial_callback(trial: "optuna.trial.BaseTrial", study_name: str, **kwargs: Any) -> WandbCallback:
    """
    The tracker of one trial of a hyperparameter search: its own run, in the group of the study.

    :param trial: the trial, its parameters sampled
    :param study_name: the group
    :param kwargs: more arguments of :class:`WandbCallback`
    :return: the callback, to be given to the trial's ``learn``
    """
    config = {**kwargs.pop("config", {}), "trial": trial.number, "trial_params": dict(trial.params)}
    arguments = {"group": study_name, "name": f"trial-{trial.number}", "save_models": False, **kwargs}
    return WandbCallback(config=config, new_run=True, **arguments)
