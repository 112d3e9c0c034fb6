"""Callbacks: walks over them, and what each part of a run asks of them."""

import sys
from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    CheckpointCallback,
    ConvertCallback,
    EvalCallback,
    EventCallback,
    ProgressBarCallback,
)
from stable_baselines3.common.type_aliases import MaybeCallback

RANK_ZERO_ONLY = (EvalCallback, CheckpointCallback, ProgressBarCallback)


@runtime_checkable
class UpdateListener(Protocol):
    """A callback that ``learn`` calls between updates as well, when no rollout has begun: for checkpoints."""

    def begin(self, root: BaseCallback) -> None:
        """All callbacks, which are within ``root``, have started, and no rollout has begun."""

    def update_ended(self, iteration: int) -> bool:
        """An update, the run's ``iteration``-th, and its log row are done. Returns False to stop training here."""

    def failed(self, iteration: int) -> None:
        """An error ends ``learn`` in or after this update."""


def with_lists(callback: BaseCallback) -> Iterator[BaseCallback]:
    """:return: the callback, and if it is a list all that is in it, lists within it included"""
    yield callback
    for child in callback.callbacks if isinstance(callback, CallbackList) else []:
        yield from with_lists(child)


def callbacks_by_name(callback: BaseCallback) -> dict[str, BaseCallback]:
    """
    A callback and those inside it, each under a name that it has in every run.

    The name has its class and its number among equal ones at the same place, and no lists:
    ``EvalCallback0``, ``EvalCallback0/StopTrainingOnNoModelImprovement0``. A callback comes before those inside it.
    """
    found: dict[str, BaseCallback] = {}
    seen: set[int] = set()

    def visit(each: BaseCallback, place: str) -> None:
        if id(each) in seen:  # a callback may know the list that it is in
            return
        seen.add(id(each))
        inside = place
        if not isinstance(each, CallbackList):
            number = 0
            while (name := f"{place}{type(each).__name__}{number}") in found:
                number += 1
            found[name], inside = each, f"{name}/"
        for attribute, value in vars(each).items():
            for child in value if isinstance(value, (list, tuple)) else (value,):
                if isinstance(child, BaseCallback) and attribute != "parent":
                    visit(child, inside)

    visit(callback, "")
    return found


def update_listeners(callback: BaseCallback) -> list[UpdateListener]:
    """:return: the callbacks, however deep, that ``learn`` calls around updates"""
    return [each for each in callbacks_by_name(callback).values() if isinstance(each, UpdateListener)]


def needs_steps(callback: BaseCallback) -> bool:
    """:return: whether a callback does anything at each step: not so an empty one, or one with ``needs_steps = False``"""
    if type(callback) is CallbackList:  # a subclass may do something itself
        return any(map(needs_steps, callback.callbacks))
    if type(callback) is ConvertCallback:
        return callback.callback is not None
    return getattr(callback, "needs_steps", True)


def set_num_timesteps(callback: BaseCallback, num_timesteps: int) -> None:
    """Tell callbacks at the end of a rollout the number of steps, which each step would have told them."""
    for each in with_lists(callback):
        each.num_timesteps = num_timesteps


class NotebookProgressBar(ProgressBarCallback):
    """
    The progress bar as one line of text on stdout.

    For notebooks, where SB3's bar, which is rich's, needs ipywidgets: without them it shows a warning and no bar, with them a
    bar that the saved notebook does not have.
    """

    def _on_training_start(self) -> None:
        from tqdm import tqdm  # optional; the constructor asks for it

        self.pbar = tqdm(total=self.locals["total_timesteps"] - self.model.num_timesteps, unit=" steps", file=sys.stdout)

    def _on_training_end(self) -> None:
        self.pbar.total = max(self.pbar.total, self.pbar.n)  # the last rollout goes on to the end of its episodes
        super()._on_training_end()


def with_notebook_bar(callback: MaybeCallback, progress_bar: bool) -> tuple[MaybeCallback, bool]:
    """:return: the arguments of SB3's ``_init_callback``, in a notebook with our progress bar in place of SB3's"""
    if not progress_bar:
        return callback, False
    bar = NotebookProgressBar()  # says what to install, if that is missing
    from rich.console import Console

    if not Console().is_jupyter:  # by this rich chooses its widgets
        return callback, True
    given = callback if isinstance(callback, list) else [callback]
    return CallbackList([*(c if isinstance(c, BaseCallback) else ConvertCallback(c) for c in given), bar]), False


def advance_progress_bars(callback: BaseCallback, n_steps: int) -> None:
    """Count environment steps that the progress bar has not seen: other ranks', or the greedy policy's."""
    for each in with_lists(callback):
        if isinstance(each, ProgressBarCallback):
            each.pbar.update(n_steps)


def callbacks_of_other_ranks(callback: MaybeCallback) -> Any:
    """
    What of a callback, a list or a tree of them runs on ranks other than 0.

    Not evaluation, checkpoints, the progress bar, and what has an attribute ``rank_zero_only`` that is True. Event
    callbacks and lists stay, without such children: they are changed in place. None if nothing is left.
    """
    if isinstance(callback, list):
        return [child for child in callback if callbacks_of_other_ranks(child) is not None]
    if isinstance(callback, RANK_ZERO_ONLY) or getattr(callback, "rank_zero_only", False):
        return None
    if isinstance(callback, CallbackList):
        callback.callbacks = [child for child in callback.callbacks if callbacks_of_other_ranks(child) is not None]
    elif isinstance(callback, EventCallback) and callbacks_of_other_ranks(callback.callback) is None:
        callback.callback = None
    return callback
