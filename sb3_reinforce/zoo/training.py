"""One training run: its folder and environments, checkpoints and tracking, resuming, and several ranks."""

import itertools
import os
import re
import shutil
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

from rl_zoo3 import ALGOS, exp_manager
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import ProgressBarCallback
from stable_baselines3.common.vec_env import VecEnv

from sb3_reinforce import REINFORCE, GradientDiagnostics
from sb3_reinforce.running import exchange, ranks
from sb3_reinforce.running.callbacks import callbacks_of_other_ranks
from sb3_reinforce.running.claims import claim
from sb3_reinforce.running.disk import try_to_write
from sb3_reinforce.running.files import write_atomically
from sb3_reinforce.zoo import checkpoints
from sb3_reinforce.zoo.disk import DiskError, with_forgiving_monitor, written_by
from sb3_reinforce.zoo.experiment import Experiment, private_files
from sb3_reinforce.zoo.patches import replaced, timesteps_kept
from sb3_reinforce.zoo.report import evaluate_saved, learning_curve, report_lines
from sb3_reinforce.zoo.trust import needs_trust
from sb3_reinforce.zoo.usage import UsageError, relative, shell_line


class Training(Experiment):
    """
    RL Zoo's training run with our checkpoints and tracking. It can be resumed, and all ranks share its folder.

    Steps in ``--save-freq`` and ``--eval-freq`` are those of all ranks.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.checkpoint: checkpoints.RunCheckpoint | None = None
        self.stopped_by: list[int] = []
        self.created_folder: str | None = None
        self.first_step = 0  # steps that the agent given by -i has played before this run
        run = self.plan.run
        if run is not None:
            self.save_path, self.params_path = str(run.folder), str(run.folder / self.env_name)
            self.continue_training, self.first_step = True, run.first_step
            try:  # before Monitor's files are touched
                self._claim = claim(run.checkpoints) if ranks.rank() == 0 else None
            except ValueError as error:
                raise UsageError(f"--resume {error}") from None

    def setup_experiment(self) -> tuple[BaseAlgorithm, dict[str, Any]] | None:
        try:
            return super().setup_experiment()
        except BaseException:
            if self.created_folder is not None:  # `enjoy` would take it as the newest run, and it has no model
                shutil.rmtree(self.created_folder, ignore_errors=True)
            raise

    def create_log_folder(self) -> None:
        if ranks.rank() == 0:
            try:
                if self.plan.run is None:
                    self._make_new_folder()
                super().create_log_folder()
            except OSError as error:
                raise UsageError(f"the run's folder {self.save_path} cannot be made: {error.strerror}") from error
        self.save_path, self.params_path = exchange.broadcast((self.save_path, self.params_path))

    def _make_new_folder(self) -> None:
        """Make the folder of the run under the next number that is free: other runs may begin at the same time."""
        os.makedirs(self.log_path, exist_ok=True)
        start = len(os.path.join(self.log_path, f"{self.env_name}_"))
        number, uuid = re.fullmatch(r"(\d+)(.*)", self.save_path[start:]).groups()  # type: ignore[union-attr]
        for following in itertools.count(int(number)):
            self.save_path = f"{self.save_path[:start]}{following}{uuid}"
            self.params_path = f"{self.save_path}/{self.env_name}"
            with suppress(FileExistsError):
                os.mkdir(self.save_path)
                break
        self.created_folder = self.save_path

    def _save_config(self, saved_hyperparams: dict[str, Any]) -> None:
        if ranks.rank() > 0:
            return
        self._saved_hyperparams = saved_hyperparams
        if not Path(self.params_path, "config.yml").is_file():
            with private_files(vars(self.args), saved_hyperparams):
                super()._save_config(saved_hyperparams)
        if self.checkpoint is not None:
            arguments = [*checkpoints.without_resume(self.plan.arguments), "--seed", str(self.seed)]
            hyperparams = checkpoints.plain_hyperparams(saved_hyperparams)
            checkpoints.write_run(
                checkpoints.SavedRun(Path(self.save_path), arguments, hyperparams, ranks.launch_id(), self.first_step)
            )

    def create_envs(self, n_envs: int, eval_env: bool = False, no_log: bool = False) -> VecEnv:
        # Monitor's files are numbered over all ranks; another machine may not have the folder
        first = ranks.rank() * n_envs
        no_log = no_log or not os.path.isdir(self.save_path)
        run = self.plan.run
        there = []
        if run is not None and not eval_env and not no_log:  # a vector environment has one file, named by its first
            numbered = {int(file.name.split(".")[0]): file for file in checkpoints.monitor_files(run.folder)}
            there = [file for number, file in numbered.items() if first <= number < first + n_envs]

        def make_vec_env(*args: Any, **kwargs: Any) -> VecEnv:
            kwargs["monitor_kwargs"] = {**(kwargs["monitor_kwargs"] or {}), "override_existing": not there}
            kwargs["start_index"] = first
            kwargs["wrapper_class"] = partial(with_forgiving_monitor, wrapper=kwargs["wrapper_class"])
            return original_make_vec_env(*args, **kwargs)

        original_make_vec_env = exp_manager.make_vec_env
        with replaced(exp_manager, "make_vec_env", make_vec_env), checkpoints.interrupts_ignored():
            env = super().create_envs(n_envs, eval_env, no_log)
        # Monitor counts seconds from the start that its file names
        for index, file in enumerate(there):
            with suppress(NotImplementedError, AttributeError):  # a vec_env_wrapper may not pass this on
                env.env_method("set_wrapper_attr", "t_start", checkpoints.started_at(file), indices=index)
        return env

    def create_callbacks(self) -> None:
        self.save_freq, self.eval_freq = (
            max(freq // ranks.world_size(), 1) if freq > 0 else freq for freq in (self.save_freq, self.eval_freq)
        )
        if ranks.rank() > 0:
            self.show_progress, self.save_freq, self.eval_freq = False, -1, -1
            self.callbacks = [c for c in self.callbacks if callbacks_of_other_ranks(c) is not None]
        super().create_callbacks()
        options, tracker = self.plan.options, self.plan.tracker
        if options.diagnostics:
            self.callbacks.append(GradientDiagnostics(options.diagnostics))
        if options.checkpoint_every and issubclass(ALGOS[self.algo], REINFORCE):
            self.checkpoint = checkpoints.RunCheckpoint(Path(self.save_path), options.checkpoint_every)
            self.callbacks.append(self.checkpoint)
        if tracker is not None:
            tracker.config.setdefault("env_id", str(self.env_name.gym_id))
            tracker.config.setdefault("run_folder", relative(Path(self.save_path)))  # so that `report` shows the run once
            if options.wandb_video_freq:
                with replaced(self, "eval_env_kwargs", {**self.eval_env_kwargs, "render_mode": "rgb_array"}):
                    tracker.video_env = self.create_envs(1, eval_env=True, no_log=True)
                tracker.video_freq = options.wandb_video_freq
            self.callbacks.append(tracker)

    def _load_pretrained_agent(self, hyperparams: dict[str, Any], env: VecEnv) -> BaseAlgorithm:
        run = self.plan.run
        if run is not None and not run.checkpoints.is_dir():  # on another machine; learn() copies rank 0's state
            return ALGOS[self.algo](env=env, seed=self.seed, device=self.device, **hyperparams)
        try:
            if run is None:
                model = super()._load_pretrained_agent(hyperparams, env)
            else:
                device = None if self.device == "auto" else self.device
                options = self.plan.options
                model = REINFORCE.resume(run.checkpoints, env, device, options.other_ranks, options.trust)
        except ValueError as error:
            raise UsageError(f"{f'-i {self.trained_agent}' if run is None else f'--resume {run.folder}'}: {error}") from error
        if run is None:
            self.first_step = model.num_timesteps
            statistics = Path(self.trained_agent).parent / self.env_name / "vecnormalize.pkl"
            if self.normalize and not statistics.is_file():
                print(f"There is no {statistics}: VecNormalize starts afresh, on what the agent was not trained with")
        start = self.trained_agent if run is None else model.newest_checkpoint  # type: ignore[attr-defined]
        print(f"Going on from {start}, at {model.num_timesteps} of {self.first_step + self.n_timesteps} steps")
        return model

    def learn(self, model: BaseAlgorithm) -> None:
        with written_by(try_to_write, type(model)):
            self._learn(model)

    def _learn(self, model: BaseAlgorithm) -> None:
        if self.checkpoint is not None and model.unfinished == "bootstrap":  # type: ignore[attr-defined]
            print('No checkpoints: with unfinished="bootstrap" a run cannot be resumed exactly')
            self.callbacks.remove(self.checkpoint)
            self.checkpoint = None
        if self.checkpoint is None:
            with timesteps_kept(type(model)) if self.continue_training else nullcontext():
                super().learn(model)
            return
        model.num_timesteps = exchange.broadcast(model.num_timesteps)
        kwargs = {} if self.log_interval == -1 else {"log_interval": None if self.log_interval < 0 else self.log_interval}
        try:
            with checkpoints.stopped_by_signals(self.checkpoint) as self.stopped_by:
                model.learn(
                    self.first_step + self.n_timesteps - model.num_timesteps,
                    callback=self.callbacks,
                    reset_num_timesteps=not self.continue_training,
                    **kwargs,  # type: ignore[arg-type]
                )
            self.stopped_by = [number for numbers in exchange.gather(self.stopped_by) for number in numbers]
        except Exception as error:
            if self.checkpoint.newest is not None:
                error.add_note("\n".join(self._how_to_resume()))
            raise
        finally:
            for callback in self.callbacks:
                if isinstance(callback, ProgressBarCallback) and hasattr(callback, "pbar"):
                    callback.on_training_end()
            with suppress(EOFError, OSError):  # dead workers cannot be told to close
                assert model.env is not None
                model.env.close()

    def save_trained_model(self, model: BaseAlgorithm) -> None:
        if ranks.rank() > 0:
            return
        try:
            if not Path(self.params_path, "config.yml").is_file():
                print(f"{self.save_path} was deleted during training: it is made anew, without Monitor's rows")
                super().create_log_folder()
                self._save_config(self._saved_hyperparams)
            with written_by(write_atomically, type(model)):
                super().save_trained_model(model)
        except OSError as error:
            go_on = "" if self.checkpoint is None else f". {' '.join(self._how_to_resume())}"
            reason = error.strerror or error
            raise DiskError(f"the trained model could not be saved in {self.save_path}: {reason}{go_on}") from error
        self.plan.finished = self

    def outcome(self) -> tuple[list[str], int]:
        """:return: the report of a finished run, or how to resume a stopped one; the exit code"""
        if self.stopped_by:
            return self._how_to_resume(), 128 + self.stopped_by[0]
        plan = self.plan
        score = evaluate_saved(self, plan.options.eval_final) if plan.options.eval_final else None
        if plan.tracker is not None and score is not None:
            plan.tracker.log_summary({"eval/final_mean_reward": score.mean, "eval/final_std_reward": score.std})
        return report_lines(self, plan, score, learning_curve(self, score), self._needs_trust()), 0

    def _needs_trust(self) -> bool:
        """:return: whether commands that read the run's files need ``--trust``"""
        folder = Path(self.save_path)
        found = checkpoints.checkpoints_in(folder / checkpoints.FOLDER)
        return bool(found) and needs_trust(folder, found[0])

    def _how_to_resume(self) -> list[str]:
        folder = Path(self.save_path)
        try:
            checkpoints.read_run(folder)
        except ValueError as error:  # the folder was deleted, or the disk was full from the beginning
            return [f"Stopped; nothing was saved to resume from: {error}"]
        newest = checkpoints.checkpoints_in(folder / checkpoints.FOLDER)[0]
        go_on = ["train", "--resume", relative(folder), *(["--trust"] if self._needs_trust() else [])]
        return [
            f"Saved:   {relative(newest)}",
            f"Go on:   {shell_line(go_on)}" + (f" (on {ranks.world_size()} ranks again)" if ranks.world_size() > 1 else ""),
        ]
