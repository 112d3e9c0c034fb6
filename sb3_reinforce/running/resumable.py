"""``learn``, ranks, save, load and resume: how an on-policy algorithm's training runs, whatever it learns from."""

import io
import pathlib
import warnings
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, Self

import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.vec_env import VecEnv

from sb3_reinforce.arguments import check_count, check_new_env, check_number
from sb3_reinforce.running import callbacks, exchange, ranks
from sb3_reinforce.running.devices import move_to_best_device
from sb3_reinforce.running.files import check_model_file, parameters_to_load, with_value_optimizer_inside
from sb3_reinforce.running.normalization import Statistics, set_statistics, statistics_of
from sb3_reinforce.running.resume import ResumedState, resume
from sb3_reinforce.running.settings import described, shared_settings
from sb3_reinforce.running.threads import limited_threads, threads_for_update
from sb3_reinforce.running.trust import objects_in
from sb3_reinforce.schedules import make_schedule, plain_schedule

COUNTERS = ("num_timesteps", "_n_rollouts", "_n_updates", "ep_info_buffer", "ep_success_buffer")


class ResumableAlgorithm(OnPolicyAlgorithm):
    """An on-policy algorithm whose runs can be stopped, resumed, and spread over ranks; the base of ``EpisodicAlgorithm``."""

    # Arguments that may change with the progress of training, and the attributes that hold their schedules
    schedules: ClassVar[dict[str, str]] = {"learning_rate": "lr_schedule"}
    # Arguments that may differ from rank to rank; all others must be the same, so that all ranks make the same updates
    own_of_each_rank: ClassVar[tuple[str, ...]] = ("n_steps", "seed")
    # Attributes that are no arguments and must be the same, too
    same_on_all_ranks: ClassVar[tuple[str, ...]] = ("policy_class", "observation_space", "action_space")

    # Rollouts begun so far: this number and the seed give the random streams of a rollout.
    _n_rollouts: int = 0
    #: the checkpoint that this run was resumed from, or the newest one that it has written
    newest_checkpoint: pathlib.Path | None = None
    # What _extra_state() returned when the model was saved
    _saved_state: dict[str, Any] | None = None
    # Set by resume(): the state that learn() restores
    _resumed: ResumedState | None = None
    # VecNormalize's statistics at the last rollout's end, which all ranks had then
    _statistics: dict[str, Statistics]
    # What _own_settings() was on each rank at the last rollout's end
    _settings_of_ranks: list[dict[str, Any]]
    _warned_of_other_parameters = False
    # device="auto": chosen when the networks are there
    _chooses_device = False
    # threads of torch in train(): a resumed run has those of the first one, because sums depend on them
    _update_threads = 1
    # The observation is an array, or a dict of arrays for Dict spaces
    _last_obs: Any
    lr_schedule: Schedule

    # Methods that subclasses override

    def _check_arguments(self) -> None:
        """:raises ValueError: for arguments that cannot be right, whatever the environment"""

    def _check_env(self) -> None:
        """:raises ValueError: for arguments that the environment cannot be trained with"""
        if self.env is None:
            raise ValueError("env must be given before training, got None: set_env(env), or load(path, env=env)")

    def _check_training(self) -> None:
        """:raises ValueError: for arguments that the model cannot be trained with"""
        self._check_arguments()
        self._check_env()

    def _prepare_reset(self, reset_num_timesteps: bool) -> None:
        """Called by ``learn`` before SB3 resets the environments, if it does."""

    def _on_learning_started(self) -> None:
        """Called when all callbacks have started, before the first rollout."""

    def _normalization(self) -> AbstractContextManager[None]:
        """Around all that plays the environments."""
        return nullcontext()

    def _shared_settings(self) -> dict[str, str]:
        """:return: a text for each setting that must be the same on all ranks, by name"""
        named = {name: described(getattr(self, name)) for name in self.same_on_all_ranks}
        return named | shared_settings(self, self.own_of_each_rank, self.schedules)

    def _own_settings(self) -> dict[str, Any]:
        """:return: what may differ from rank to rank: a checkpoint keeps it for each"""
        return {"n_envs": self.n_envs, **{name: getattr(self, name) for name in self.own_of_each_rank}}

    def _of_ranks(self, name: str) -> list[Any]:
        """:return: the value of an argument that may differ, on each rank; in a plain run as it is now"""
        shared = ranks.world_size() > 1
        return [settings[name] for settings in self._settings_of_ranks] if shared else [getattr(self, name)]

    def _extra_state(self) -> dict[str, Any]:
        """:return: state besides networks, optimisers and counters: it is saved, and broadcast to all ranks"""
        return {}

    def _set_extra_state(self, state: dict[str, Any]) -> None:
        """Called by ``load`` and ``resume``, and on ranks other than 0 when training starts."""

    def _start(self, device: th.device | str) -> th.device | str:
        """Join the other ranks, and say where the networks are built: for "auto" on the CPU."""
        self._chooses_device = device == "auto"
        device = ranks.start(device)
        return "cpu" if self._chooses_device else device

    def _setup_model(self) -> None:
        with limited_threads():  # the numbers that a seed gives depend on them
            super()._setup_model()
        if self._chooses_device:
            move_to_best_device(self)

    @staticmethod
    def _wrap_env(env: GymEnv, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        check_new_env(env)
        return OnPolicyAlgorithm._wrap_env(env, verbose, monitor_wrapper)

    def _setup_lr_schedule(self) -> None:
        """Make the schedules of all arguments, also of those that ``load`` has replaced."""
        self._scheduled: dict[str, Any] = {}
        self._renew_schedules()

    def _renew_schedules(self) -> None:
        """Make the schedules of arguments that were assigned since: callbacks may do so, as with A2C's ``ent_coef``."""
        for name, attribute in self.schedules.items():
            value = plain_schedule(getattr(self, name))
            if name not in self._scheduled or value != self._scheduled[name]:
                setattr(self, attribute, make_schedule(name, value))
                setattr(self, name, value)
                self._scheduled[name] = value

    def _update_current_progress_remaining(self, num_timesteps: int, total_timesteps: int) -> None:
        # The last episodes run beyond total_timesteps; a schedule such as `lambda p: 1e-3 * p` must not turn negative.
        super()._update_current_progress_remaining(min(num_timesteps, total_timesteps), total_timesteps)

    @ranks.fails_for_all
    def learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int | None = 1,
        tb_log_name: str = "",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> Self:
        """
        Train for at least ``total_timesteps`` environment steps; the last rollout is played to the end of its episodes.

        Meanwhile NumPy's BLAS and torch use one thread, in environments and callbacks of this process, too; updates of
        policies with convolutions use as many as torch is set to.

        :param total_timesteps: The total number of samples (env steps) to train on, including discarded ones
        :param callback: Callback(s) called at every step with state of the algorithm.
        :param log_interval: number of updates from one log row to the next; None: no rows
        :param tb_log_name: the name of the run for TensorBoard logging; empty: that of the class
        :param reset_num_timesteps: whether or not to reset the current timestep number (used in logging)
        :param progress_bar: Display a progress bar using tqdm and rich.
        :return: the trained model
        :raises ValueError: see :meth:`collect_rollouts` and :meth:`train`
        """
        self._check_training()
        check_number("total_timesteps", total_timesteps)
        check_count("log_interval", log_interval, optional=True)
        self._renew_schedules()
        tb_log_name = tb_log_name or type(self).__name__
        if reset_num_timesteps:
            self._resumed = self.newest_checkpoint = None
        # an environment that is new is reset in here
        with nullcontext() if reset_num_timesteps else self._normalization():
            total_timesteps, callback = self._setup_learn(
                total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar
            )
        callback.on_training_start(locals(), globals())
        listeners = callbacks.update_listeners(callback)
        for listener in listeners:
            listener.begin(callback)
        resumed, self._resumed = self._resumed, None
        self._update_threads = threads_for_update(self.policy) if resumed is None else self._update_threads
        iteration = 0 if resumed is None else resumed.restore(self, callback, total_timesteps)
        assert self.env is not None, "checked above"
        self._on_learning_started()

        try:
            while self.num_timesteps < total_timesteps:
                with limited_threads():
                    if not self.collect_rollouts(self.env, callback, self.rollout_buffer, n_rollout_steps=self.n_steps):
                        break
                iteration += 1
                self._update_current_progress_remaining(self.num_timesteps, total_timesteps)
                with limited_threads(self._update_threads):
                    self.train()
                # After the update, unlike SB3's own loop: the row then shows the update that its episodes made.
                if log_interval is not None and iteration % log_interval == 0:
                    self.dump_logs(iteration)
                goes_on = [listener.update_ended(iteration) for listener in listeners]
                stops, alike = exchange.agree(not all(goes_on), self.policy.parameters())
                if not alike:
                    self._warn_of_other_parameters()
                    self._follow_rank_0()
                if stops:
                    break
        except BaseException:
            for listener in listeners:
                listener.failed(iteration)
            raise

        callback.on_training_end()
        exchange.agree(False)  # what rank 0 has to write is there when learn() returns
        return self

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        if ranks.world_size() > 1:
            self._meet(total_timesteps, reset_num_timesteps)
        self._prepare_reset(reset_num_timesteps)
        learning = super()._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)
        if ranks.rank() > 0:
            self._logger = Logger(folder=None, output_formats=[])  # also if the user has set one
        return learning

    def _init_callback(self, callback: MaybeCallback, progress_bar: bool = False) -> BaseCallback:
        if ranks.rank() > 0:
            callback, progress_bar = callbacks.callbacks_of_other_ranks(callback), False
        return super()._init_callback(*callbacks.with_notebook_bar(callback, progress_bar))

    def _meet(self, total_timesteps: int, reset_num_timesteps: bool) -> None:
        """
        All ranks begin alike.

        :raises ValueError: if settings that must be the same are not
        """
        settings = {"total_timesteps": str(total_timesteps), "reset_num_timesteps": str(reset_num_timesteps)}
        with ranks.late_ranks_named():
            exchange.check_equal(settings | self._shared_settings())
        self._follow_rank_0()

    def _follow_rank_0(self) -> None:
        """Copy rank 0's parameters, optimisers, ``VecNormalize`` statistics, counters and extra state to all ranks."""
        state: dict[str, Any] = exchange.broadcast(
            {
                "parameters": self.get_parameters(),
                "statistics": statistics_of(self._vec_normalize_env),
                "counters": {name: getattr(self, name) for name in COUNTERS},
                "extra": self._extra_state(),
            }
        )
        self._statistics = state["statistics"]
        if ranks.rank() > 0:
            self.verbose, self.tensorboard_log = 0, None  # once more: load() may have brought others
            self.set_parameters(state["parameters"], device=self.device)
            set_statistics(self._vec_normalize_env, state["statistics"])
            for name, value in state["counters"].items():
                setattr(self, name, value)
            self._set_extra_state(state["extra"])

    def _warn_of_other_parameters(self) -> None:
        if ranks.rank() == 0 and not self._warned_of_other_parameters:
            self._warned_of_other_parameters = True
            warnings.warn(
                f"after update {self._n_updates} the policy is not the same on all ranks, and all continue with rank 0's "
                "(said once): a callback changes it, or a setting, on one rank only, or their processors compute differently",
                stacklevel=3,
            )

    def _excluded_save_params(self) -> list[str]:
        return [
            *super()._excluded_save_params(), "_scheduled", "_resumed", "newest_checkpoint", "_statistics",
            "_settings_of_ranks", "_warned_of_other_parameters", "_chooses_device",
        ]  # fmt: skip

    def save(
        self,
        path: str | pathlib.Path | io.BufferedIOBase,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        """
        Save all the attributes of the object and the model parameters in a zip-file.

        Under ``torchrun`` only rank 0 writes, unless ``path`` is an open file.

        :param path: path to the file where the rl agent should be saved
        :param exclude: name of parameters that should be excluded in addition to the default ones
        :param include: name of parameters that might be excluded but should be included anyway
        """
        if ranks.rank() == 0 or not isinstance(path, (str, pathlib.Path)):
            self._saved_state = self._extra_state()
            super().save(path, exclude, include)

    @classmethod
    def load(
        cls,
        path: str | pathlib.Path | io.BufferedIOBase,
        env: GymEnv | None = None,
        device: th.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        *,
        trust: bool = False,
        **kwargs: Any,
    ) -> Self:
        """
        Load the model from a zip-file, as every Stable-Baselines3 algorithm does, but run no code of the file.

        :param path: path to the file (or a file-like) where to load the agent from
        :param env: the new environment to run the loaded model on
        :param device: Device on which the code should run.
        :param custom_objects: objects by name that replace the saved ones, which are then not read
        :param print_system_info: Whether to print system info from the saved model and the current system info
        :param force_reset: Force call to ``reset()`` before training
        :param trust: whether objects of the user's own (a policy class, a function as schedule) are unpickled, too, which may
            run any code: for files that you would run as a program
        :param kwargs: extra arguments to change the model when loading
        :return: new model instance with loaded parameters
        :raises ValueError: if the file is torn, is no saved model, or needs ``trust``
        """
        check_model_file(path)
        if not trust:
            path, custom_objects = objects_in(path, custom_objects or {})
        if device == "auto":  # the file is read to the CPU, then the new model chooses
            ranks.start(device)  # here, because for the CPU it would leave GPUs out
            device, kwargs["_chooses_device"] = "cpu", True
        model = super().load(path, env, device, custom_objects, print_system_info, force_reset, **kwargs)
        if model._saved_state is not None:
            model._set_extra_state(model._saved_state)
        return model

    @classmethod
    def resume(
        cls,
        path: str | pathlib.Path,
        env: GymEnv | str,
        device: th.device | str | None = None,
        other_ranks: bool = False,
        trust: bool = False,
    ) -> Self:
        """
        Resume from a checkpoint of :class:`~sb3_reinforce.TrainingCheckpoint`, as if training had never stopped.

        Call ``learn(total - model.num_timesteps, reset_num_timesteps=False, callback=...)`` next, with the callbacks of the
        first run: their counters and best scores are restored when it starts. With a seed, on the CPU, and with environments
        whose past ``reset(seed)`` erases, parameters, statistics and logged rows are then bit for bit those of a run that was
        never stopped.

        :param path: the folder, whose newest whole checkpoint is taken (a warning names damaged ones), or one file
        :param env: the environment, made and wrapped as in the first run; ``VecNormalize`` gets the saved statistics
        :param device: None: that of the first run
        :param other_ranks: whether the numbers of ranks and environments may differ from the first run's. Batch and random
            numbers are then others; change ``n_steps`` or ``n_episodes`` of the model for a batch of the same size
        :param trust: see :meth:`load`
        :return: the model
        :raises ValueError: if a file, or all in the folder, are damaged, of another algorithm, version, environment or number
            of ranks, or need ``trust``
        """
        model, state = resume(cls, path, env, device, other_ranks, trust)
        model._resumed, model.newest_checkpoint = state, state.path
        return model

    def get_parameters(self) -> dict[str, dict[str, Any]]:
        """
        Return the parameters of the agent, as every Stable-Baselines3 algorithm does: A2C and PPO can load them, too.

        :return: Mapping from names of the objects to PyTorch state-dicts.
        """
        return with_value_optimizer_inside(super().get_parameters())

    def set_parameters(
        self,
        load_path_or_dict: str | dict[str, Any],
        exact_match: bool = True,
        device: th.device | str = "auto",
    ) -> None:
        """
        Load parameters from a zip-file or a dictionary, also those of an A2C or PPO model with the same networks.

        A model of another algorithm brings no state of the value optimiser, and perhaps the state of another class of
        optimiser: those are left as they are, with a warning for the latter.

        :param load_path_or_dict: Location of the saved data (path or file-like, see ``save``), or a nested dictionary
            as ``get_parameters`` returns it
        :param exact_match: whether each module and each of its parameters must be there
        :param device: where a file is read to; "auto": the model's
        """
        device = self.device if device == "auto" else device
        params = parameters_to_load(load_path_or_dict, super().get_parameters(), device)
        super().set_parameters(params, exact_match=exact_match, device=device)
