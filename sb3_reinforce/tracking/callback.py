"""``WandbCallback``: a W&B run around one ``learn``, with the settings that decide a result and SB3's metrics."""

import atexit
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Literal, get_args
from weakref import WeakSet

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import GymEnv

from sb3_reinforce.reinforce import REINFORCE
from sb3_reinforce.tracking.background import BackgroundRun
from sb3_reinforce.tracking.metrics import STEP_KEY
from sb3_reinforce.tracking.service import end_service
from sb3_reinforce.tracking.settings import masked_command, model_settings, plain
from sb3_reinforce.tracking.video import make_video_env, record_episode
from sb3_reinforce.tracking.writer import WandbOutputFormat, histogram

if TYPE_CHECKING:
    import optuna
    import wandb
    from stable_baselines3.common.base_class import BaseAlgorithm

Mode = Literal["auto", "online", "offline", "disabled"]

# Exit codes as W&B sets them itself: 0 finished, 255 Ctrl-C; 143 is the shell's for SIGTERM. Else the run failed.
FINISHED, FAILED, INTERRUPTED, TERMINATED = 0, 1, 255, 143

# More rows of single episodes would slow training, and nobody could tell them apart
MAX_EPISODE_RATE = 10.0

# A rollout that takes longer is watched step by step, so that its episodes are seen before its end
_LONG_ROLLOUT = 1.0

# A new best model within so many seconds of the last waits, so that early training does not upload one per evaluation
_SECONDS_BETWEEN_BESTS = 60.0
# Callbacks whose run has not ended
_OPEN: "WeakSet[WandbCallback]" = WeakSet()


class WandbCallback(BaseCallback):
    """
    Tracks ``learn`` of any SB3 algorithm in Weights & Biases.

    - One row for each ``logger.dump``, that is for each update with REINFORCE: SB3's metrics under their names, mean, std,
      min, max and histogram of the raw returns and lengths of the episodes since the last one, and every
      ``histogram_freq`` rows histograms of the steps' returns, actions and advantages. The x-axis is ``global_step``.
    - Between them single episodes (``episode/return``, ``episode/length``), at most ``episode_rate`` a second.
    - Evaluations of an ``EvalCallback``; the best one is in the summary.
    - Videos of deterministic episodes, if there is a ``video_env``.
    - The last model and, with an ``EvalCallback``, the best one as artifacts of type ``model`` with the aliases ``last`` and
      ``best``, each with the statistics of its ``VecNormalize``.
    - The settings that decide the result: arguments as given, environment, versions, git commit, command. What looks like a
      key is masked; environment variables, the program's output and uncommitted changes are not recorded.

    If a run is active already (``wandb.init`` was called before) it is used and left open. Otherwise the callback starts one
    when the first rollout starts and finishes it when training ends; each ``learn`` then is a run of its own. Its state is
    *finished*, *failed* (an error) or *killed* (Ctrl-C, SIGTERM). If ``learn`` raises, SB3 does not tell its callbacks: an
    error that ends the process is noticed at its end, else use the callback as a context manager::

        with WandbCallback() as tracker:
            model.learn(100_000, callback=tracker)

    Tracking never stops training, never makes it wait and never asks anything on the terminal: calls to W&B are made in a
    thread of their own, what fails is warned about once, and everything logged is kept in the run's folder. A server that
    does not answer within ``init_timeout`` leaves an offline run, to be uploaded later with ``wandb sync``.

    ``state_dict`` and ``load_state_dict`` carry the run's id: a checkpoint that restores them before the first rollout goes on
    in the same run.

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
    :param episode_rate: at most so many rows of single episodes per second, at most 10; 0: none
    :param histogram_freq: number of update rows from one set of histograms of steps to the next; 0: none
    :param save_models: whether to log the best and the last model
    :param video_env: environment for videos, with ``render_mode="rgb_array"``, or its id; None: no videos. The training
        environment's VecNormalize is applied
    :param video_freq: environment steps from one video to the next; one more shows the end of training
    :param run_id: id of a W&B run to go on with; None: a new one
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
        for argument, value, least in (("histogram_freq", histogram_freq, 0), ("video_freq", video_freq, 1)):
            if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
                raise ValueError(f"{argument} must be a whole number >= {least}, got {value!r}")
        for argument, seconds in (("init_timeout", init_timeout), ("finish_timeout", finish_timeout)):
            if not 0 < seconds < float("inf"):
                raise ValueError(f"{argument} must be a number of seconds above 0, got {seconds!r}")
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
        self.episode_rate = episode_rate
        self.histogram_freq = histogram_freq
        self.save_models = save_models
        self.video_env = video_env
        self.video_freq = video_freq
        self.new_run = new_run
        self.init_timeout = init_timeout
        self.finish_timeout = finish_timeout
        self.run: wandb.Run | None = None
        # these three stay known after the run was finished
        self.run_dir: Path | None = None
        self.run_url: str | None = None
        self.run_id = run_id
        #: highest ``eval/mean_reward`` so far
        self.best_mean_reward: float | None = None
        self._resuming = run_id is not None
        self._first_row = 0
        self._n_rows = 0
        self._owns_run = False
        self._thread = 0
        self._background: BackgroundRun | None = None
        self._writer: WandbOutputFormat | None = None
        self._rollout_start = 0.0
        self._start_due = self._training_ended = self._terminated = False
        self._reset_statistics()

    def _reset_statistics(self) -> None:
        # return and length of the episodes since the last update row
        self._episodes: deque[tuple[float, float]] = deque(maxlen=100_000)
        #: whether REINFORCE is to call this callback at each step; other algorithms always do
        self.needs_steps = True
        self._next_episode_row = 0.0
        self._n_update_rows = 0
        self._next_video = self._last_best = 0.0
        self._pending_best: tuple[Path, dict[str, Any]] | None = None
        self._folder: Path | None = None
        self._warned: set[str] = set()
        self._given_up = threading.Event()

    # ------------------------------------------------------------------------------------------- SB3 calls these

    def init_callback(self, model: "BaseAlgorithm") -> None:
        """
        Called by ``learn``. A run that is still open ends here, while its model is known: the ``learn`` of this thread that it
        belongs to was interrupted, or ``finish_at_end`` is False and ``finish`` was not called.

        :param model: about to train
        """
        for each in list(_OPEN):
            left_open = each is self or not (each.new_run or each._training_ended)
            if left_open and each._owns_run and each._thread == threading.get_ident():
                each.finish(exit_code=FINISHED if each._training_ended else FAILED)
        super().init_callback(model)

    def _on_training_start(self) -> None:
        self._total_timesteps = self.locals["total_timesteps"]
        self._training_ended = False
        self._start_due = True

    def _on_rollout_start(self) -> None:
        # Not before: a checkpoint puts back the run's id when all callbacks have started.
        if self._start_due:
            self._start_due = False
            self._start()
        if self.video_env is not None and self.num_timesteps >= self._next_video:
            self._next_video = (self.num_timesteps // self.video_freq + 1) * self.video_freq
            self._log_video()
        self._rollout_start = time.monotonic()

    def _on_step(self) -> bool:
        if self.needs_steps:
            dones = self.locals.get("dones")
            if dones is not None and np.count_nonzero(dones):
                self._end_episodes(dones)
        return True

    def _on_rollout_end(self) -> None:
        if self._writer is None or not isinstance(self.model, REINFORCE):
            return
        # Not those that have ended while REINFORCE waited for others: short ones, and not used for the update.
        used = [e for e in self.locals["tracker"].episodes if not e.cut and e.total_reward is not None]
        self._episodes.extend((e.total_reward, e.first_step + e.length) for e in used)
        if used and not self.needs_steps:
            last = max(used, key=lambda episode: episode.end)
            steps_since = (self.locals["n_steps"] - last.end) * self.model.n_envs
            self._log_episode(last.total_reward, last.first_step + last.length, self.num_timesteps - steps_since)
        # At CartPole's speed a microsecond in each step is 1 % of training, and a rollout is over within a tenth of a second.
        self.needs_steps = time.monotonic() - self._rollout_start > _LONG_ROLLOUT

    def _on_training_end(self) -> None:
        if self.run is not None and not self._training_ended:
            self._training_ended = True
            if self.video_env is not None:
                self._log_video()
            self._log_models()
        self._detach()
        if self.finish_at_end:
            self.finish()

    # ------------------------------------------------------------------------------------------- for the caller

    @property
    def training_interrupted(self) -> bool:
        """Whether ``learn`` has begun and not come to its end."""
        return self.run is not None and not self._training_ended

    def log_summary(self, values: Mapping[str, float]) -> None:
        """
        Put single numbers, such as a final evaluation's, beside the run's name in W&B's table of runs.

        :param values: names and numbers; where no run is open nothing happens
        """
        run = self.run
        if run is not None:
            kept = dict(values)
            self._submit(lambda: run.summary.update(kept), "the summary was not recorded")

    def finish(self, exit_code: int = FINISHED) -> None:
        """
        End the run, if this callback started it. A second call does nothing.

        It returns within ``finish_timeout`` and some seconds, whatever the server does.

        :param exit_code: 0 for success; 255 (Ctrl-C) and 143 (SIGTERM) say that training was killed, anything else that it
            failed
        """
        if self.run is not None and self._owns_run and not self._training_ended:
            self._training_ended = True
            self._log_models()
        self._detach()
        self._restore_signal()
        atexit.unregister(self._at_exit)
        run, background = self.run, self._background
        self.run = self._background = None
        _OPEN.discard(self)
        if background is None or run is None:
            return
        last = (lambda: run.finish(exit_code=exit_code)) if self._owns_run else None
        in_time = False
        try:
            in_time = background.close(last, self.finish_timeout + 5)
        except Exception as error:
            self._warn("something was not logged", error)
        finally:
            if not in_time:
                self._given_up.set()
                self._warn(f"did not end within {self.finish_timeout:g} s, what was logged is in {self.run_dir}")
                if self._owns_run:
                    end_service()
            if self._folder is not None:
                shutil.rmtree(self._folder, ignore_errors=True)
            self._reset_statistics()

    def __enter__(self) -> "WandbCallback":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.finish(exit_code_of(error))

    def state_dict(self) -> dict[str, Any]:
        """:return: what a checkpoint needs to go on in the same run: its id, rows written, best evaluation"""
        state: dict[str, Any] = {"n_rows": self._first_row + self._n_rows}
        if self.run_id is not None:
            state["run_id"] = self.run_id
        if self.best_mean_reward is not None:
            state["best_mean_reward"] = self.best_mean_reward
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """
        Go on in the run that is described; to be called before the first rollout.

        :param state_dict: what :meth:`state_dict` returned
        """
        if "run_id" in state_dict:
            self.run_id, self._resuming = state_dict["run_id"], True
        self._first_row = state_dict.get("n_rows", 0)
        self.best_mean_reward = state_dict.get("best_mean_reward", self.best_mean_reward)

    # ------------------------------------------------------------------------------------------- start and end

    def _start(self) -> None:
        import wandb

        self._owns_run = self.new_run or wandb.run is None
        if not self._resuming:
            self._first_row, self.best_mean_reward = 0, None
        self._n_rows = 0
        self._next_video, self._next_episode_row = 0.0, 0.0 if self.episode_rate else float("inf")
        self.run = self._start_run() if self._owns_run else wandb.run
        # each learn() is a run of its own: that of a checkpoint is gone on with once
        self._resuming, resumed = False, self._resuming
        run = self.run
        if run is None:
            return
        self._background = BackgroundRun(run, first_step=self._first_row if resumed else 0)
        try:
            self.run_id = run.id
            if not run.disabled:
                # the run's `dir` is its folder for files, one level below
                self.run_dir = Path(run.dir).parent
                self.run_url = None if run.offline else run.url
        except Exception as error:
            self._warn("the run's folder is not known", error)
        try:
            settings = {**model_settings(self.model), "total_timesteps": self._total_timesteps, **plain(self.config)}
        except Exception as error:
            self._warn("the settings were not recorded", error)
        else:
            # setdefaults: what the user put there stays
            self._submit(lambda: run.config.setdefaults(settings), "the settings were not recorded")
        self._writer = WandbOutputFormat(self._background, add_to_row=self._add_to_row, warn=self._warn)
        self.logger.output_formats.append(self._writer)
        _OPEN.add(self)
        self._thread = threading.get_ident()
        if self._owns_run:
            # before W&B's own, which would wait without bound
            atexit.register(self._at_exit)
            self._notice_sigterm()

    def _start_run(self) -> "wandb.Run | None":
        # W&B's own crash reports look up a host even offline, and the first run of a process starts them. Set before W&B reads
        # its variables, which it does to find the key.
        reports = os.environ.get("WANDB_ERROR_REPORTING")
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        mode = self._resolved_mode()
        if mode == "online" and reports is None:
            del os.environ["WANDB_ERROR_REPORTING"]
        modes = ("online", "offline") if mode == "online" else (mode,)
        for attempt in modes:
            try:
                return self._init(attempt)
            except Exception as error:
                next_step = "the run is kept offline" if attempt == "online" else "this training is not tracked"
                self._warn(f"could not start {attempt}, {next_step}", error, about=f"start {attempt}")
        return None

    def _init(self, mode: str) -> "wandb.Run":
        import wandb

        # wandb.init changes the Settings that it is given: make them anew for each attempt.
        settings = wandb.Settings(
            # the default limits are 90 s for the start and none for the end
            init_timeout=self.init_timeout,
            # the other half is for models that are still being uploaded
            finish_timeout=self.finish_timeout / 2,
            # rows reach the file after so many seconds: what a killed process loses
            x_transaction_log_flush_interval=2.0,
            # the program's output and uncommitted changes may hold secrets
            console=os.environ.get("WANDB_CONSOLE", "off"),  # type: ignore[arg-type]
            disable_git=True,
            save_code=False,
            silent=self.verbose < 1,
            quiet=self.verbose < 2,
        )
        resumed: dict[str, Any] = {}
        if self._resuming:
            # offline W&B does not look for the earlier rows, and would say so in a warning
            resumed = {"id": self.run_id, **({"resume": "allow"} if mode == "online" else {})}
        with _masked_argv():
            return wandb.init(
                project=self.project,
                entity=self.entity,
                name=self.name,
                group=self.group,
                tags=self.tags,
                mode=mode,  # type: ignore[arg-type]
                reinit="create_new" if self.new_run else None,
                settings=settings,
                **resumed,
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
            self._warn("the API key cannot be read, the run is kept offline", error, about="key")
            return "offline"
        if self.mode == "auto" and wished in ("offline", "disabled"):
            return wished
        if has_key:
            return "online"
        if self.mode == "online":
            # wandb.init(mode="online") would wait for a person at the terminal
            warnings.warn("W&B: no API key is configured (`wandb login`), the run is kept offline", stacklevel=2)
        return "offline"

    def _detach(self) -> None:
        # A custom logger outlives learn(): without this a second learn() would write every row twice
        if self._writer is not None and self._writer in self.logger.output_formats:
            self.logger.output_formats.remove(self._writer)
        self._writer = None

    def _at_exit(self) -> None:
        # what ends the interpreter; a SystemExit is not kept
        error = getattr(sys, "last_value", None)
        if self._terminated:
            self.finish(TERMINATED)
        elif error is not None:
            self.finish(exit_code_of(error))
        else:
            self.finish(FINISHED if self._training_ended else FAILED)

    def _notice_sigterm(self) -> None:
        """
        Let SIGTERM, which clusters send before they kill, end the process as an exception does: the run is finished as killed.

        Only where nobody else listens to it.
        """
        in_main_thread = threading.current_thread() is threading.main_thread()
        if in_main_thread and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, self._terminate)

    def _restore_signal(self) -> None:
        # methods are equal, and not the same: each look-up makes a new one
        if signal.getsignal(signal.SIGTERM) == self._terminate and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def _terminate(self, signum: int, frame: FrameType | None) -> None:
        self._terminated = True
        sys.exit(TERMINATED)

    # ------------------------------------------------------------------------------------------- rows

    def _end_episodes(self, dones: np.ndarray) -> None:
        infos = self.locals["infos"]
        ended = [infos[i].get("episode") for i in np.flatnonzero(dones).tolist()]
        monitored = [(float(episode["r"]), float(episode["l"])) for episode in ended if episode is not None]
        if not monitored or self._writer is None:
            return
        if not isinstance(self.model, REINFORCE):
            self._episodes.extend(monitored)
        self._log_episode(*monitored[-1], self.num_timesteps)

    def _log_episode(self, total_reward: float, length: float, step: int) -> None:
        now = time.monotonic()
        if self._writer is not None and now >= self._next_episode_row:
            self._next_episode_row = now + 1 / self.episode_rate
            self._writer.log_row({STEP_KEY: step, "episode/return": total_reward, "episode/length": float(length)})

    def _add_to_row(self, row: dict[str, Any]) -> None:
        """What SB3's logger does not know, added to the row that it has dumped."""
        self._n_rows += 1
        if "time/fps" in row:  # in the row of an update, and in no other
            self._add_statistics(row)
        if "eval/mean_reward" in row:
            self._note_evaluation(row)
        if self._pending_best is not None and time.monotonic() - self._last_best > _SECONDS_BETWEEN_BESTS:
            self._log_best()

    def _add_statistics(self, row: dict[str, Any]) -> None:
        if self._episodes:
            episodes = np.array(self._episodes, dtype=np.float64)
            self._episodes.clear()
            for statistic in ("mean", "std", "min", "max"):
                for name, value in zip(("return", "length"), getattr(episodes, statistic)(axis=0).tolist(), strict=True):
                    row.setdefault(f"rollout/ep_{name}_{statistic}", value)
            # made by the thread
            row["rollout/ep_return_hist"] = partial(histogram, episodes[:, 0])
            row["rollout/ep_length_hist"] = partial(histogram, episodes[:, 1])
        if self.histogram_freq and self._n_update_rows % self.histogram_freq == 0:
            self._add_histograms(row)
        self._n_update_rows += 1

    def _add_histograms(self, row: dict[str, Any]) -> None:
        buffer = getattr(self.model, "rollout_buffer", None)
        names: tuple[str, ...] = ("returns", "advantages", "actions")
        if buffer is None:
            buffer, names = getattr(self.model, "replay_buffer", None), ("actions",)
        n_rows = 0 if buffer is None else buffer.size()
        for name in names if n_rows else ():
            discrete = name == "actions" and isinstance(self.model.action_space, spaces.Discrete | spaces.MultiDiscrete)
            # a copy, because the thread comes to it when the next rollout has begun
            row[f"histogram/{name}"] = partial(histogram, np.array(getattr(buffer, name)[:n_rows][-10_000:]), discrete)

    def _note_evaluation(self, row: dict[str, Any]) -> None:
        mean_reward, step = float(row["eval/mean_reward"]), row[STEP_KEY]
        if self.best_mean_reward is not None and mean_reward <= self.best_mean_reward:
            return
        self.best_mean_reward = mean_reward
        self.log_summary({"best/eval_mean_reward": mean_reward, "best/global_step": step})
        saved = self._save_model("best")
        if saved is not None:
            self._pending_best = saved, {STEP_KEY: step, "eval/mean_reward": mean_reward}
            if time.monotonic() - self._last_best > _SECONDS_BETWEEN_BESTS:
                self._log_best()

    # ------------------------------------------------------------------------------------------- models and videos

    def _save_model(self, alias: str) -> Path | None:
        """:return: a folder with the model and the statistics of its VecNormalize; None if that is not possible"""
        if not self.save_models or self.run is None or self.run.disabled:
            return None
        try:
            if self._folder is None:
                self._folder = Path(tempfile.mkdtemp(prefix="sb3-reinforce-"))
            folder = Path(tempfile.mkdtemp(prefix=f"{alias}-", dir=self._folder))
            self.model.save(folder / "model.zip")
            normalize = self.model.get_vec_normalize_env()
            if normalize is not None:
                normalize.save(str(folder / "vecnormalize.pkl"))
        except Exception as error:
            self._warn("a model was not saved", error)
            return None
        return folder

    def _log_models(self) -> None:
        self._log_best()
        saved = self._save_model("last")
        if saved is not None:
            self._log_artifact(saved, "last", {STEP_KEY: self.num_timesteps})

    def _log_best(self) -> None:
        if self._pending_best is not None:
            self._log_artifact(self._pending_best[0], "best", self._pending_best[1])
            self._pending_best, self._last_best = None, time.monotonic()

    def _log_artifact(self, folder: Path, alias: str, metadata: dict[str, Any]) -> None:
        run = self.run
        assert run is not None

        def log() -> None:
            import wandb

            artifact = wandb.Artifact(f"model-{run.id}", type="model", metadata=metadata)
            for file in sorted(folder.iterdir()):
                artifact.add_file(str(file))
            run.log_artifact(artifact, aliases=[alias])
            shutil.rmtree(folder)  # W&B has made a copy

        self._submit(log, "a model was not logged", upload=True)

    def _log_video(self) -> None:
        if self.run is None or self._writer is None:
            return
        try:
            if isinstance(self.video_env, gym.Env | str):
                self.video_env = make_video_env(self.video_env, self.model)
            frames, fps, total_reward = record_episode(self.model, self.video_env)  # type: ignore[arg-type]
        except Exception as error:
            self._warn("no videos are recorded", error, about="videos")
            self.video_env = None
            return
        caption = f"step {self.num_timesteps}, return {total_reward:g}"

        def video() -> Any:
            import wandb

            try:
                return wandb.Video(frames, fps=fps, format="mp4", caption=caption)
            except Exception as error:
                self._warn("a video was not encoded", error, about="videos")
                return None

        # the thread encodes it, while training goes on
        self._writer.log_row({STEP_KEY: self.num_timesteps, "eval/video": video})

    # ------------------------------------------------------------------------------------------- failures

    def _submit(self, call: Callable[[], Any], consequence: str, upload: bool = False) -> None:
        if self._background is None:
            return

        given_up = self._given_up

        def guarded() -> None:
            try:
                call()
            except Exception as error:
                if not given_up.is_set():
                    self._warn(consequence, error)

        try:
            self._background.submit(guarded, upload)
        except Exception as error:
            # what the thread failed with before; the writer says so
            if self._writer is None:
                self._warn(consequence, error)

    def _warn(self, consequence: str, error: Exception | None = None, about: str = "run") -> None:
        """Once per run about its start, the run and its videos: one trouble brings others after it."""
        if about not in self._warned:
            self._warned.add(about)
            reason = "" if error is None else f" ({type(error).__name__}: {error})"
            warnings.warn(f"W&B: {consequence}, training goes on{reason}", stacklevel=3)


def trial_callback(trial: "optuna.trial.BaseTrial", study_name: str, **kwargs: Any) -> WandbCallback:
    """
    The tracker of one trial of a hyperparameter search: a run of its own, all in one group.

    :param trial: the trial, its parameters sampled
    :param study_name: the group
    :param kwargs: more arguments of :class:`WandbCallback`
    :return: the callback, to be given to the trial's ``learn``
    """
    config = {**kwargs.pop("config", {}), "trial": trial.number, "trial_params": dict(trial.params)}
    arguments = {"group": study_name, "name": f"trial-{trial.number}", "save_models": False, **kwargs}
    return WandbCallback(config=config, new_run=True, **arguments)


def exit_code_of(error: BaseException | None) -> int:
    """
    :param error: what training has ended with
    :return: the exit code of its run
    """
    if error is None:
        return FINISHED
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(error, SystemExit):
        code = error.code
        return code if isinstance(code, int) else FINISHED if code is None else FAILED
    return FAILED


@contextmanager
def _masked_argv() -> Iterator[None]:
    """W&B records the command line when a run starts."""
    original = sys.argv
    sys.argv = masked_command(original)
    try:
        yield
    finally:
        sys.argv = original


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
