"""SB3's logger -> rows of a W&B run, one for each ``logger.dump``."""

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from stable_baselines3.common.logger import KVWriter, filter_excluded_keys

from sb3_reinforce.tracking.background import BackgroundRun
from sb3_reinforce.tracking.media import to_wandb
from sb3_reinforce.tracking.metrics import STEP_KEY
from sb3_reinforce.tracking.run import Warner

if TYPE_CHECKING:
    import wandb


class WandbOutputFormat(KVWriter):
    """
    Writes what SB3's logger records to a W&B run, under the same names, with the time step as the x-axis.

    The step is an ordinary metric, ``global_step``, because W&B's own row number cannot decrease (``learn`` called again
    restarts at 0). Images, figures, videos and arrays become W&B's types. Strings and ``HParam`` are left out: W&B keeps
    settings in its config. Nothing here raises. After a row that could not be logged the writer logs nothing more.

    :param run: the run to write to, started and finished by the caller
    :param add_to_row: called with each row before it is logged, to read it or add to it
    :param warn: called with the consequence of a failure and the error; None: a Python warning
    """

    def __init__(
        self,
        run: "wandb.Run | BackgroundRun",
        add_to_row: Callable[[dict[str, Any]], None] | None = None,
        warn: Callable[[str, Exception], None] | None = None,
    ) -> None:
        self.run = run
        self.add_to_row = add_to_row
        self.warn = warn or Warner()
        self._failed = False
        self._warned_keys: set[str] = set()
        try:
            run.define_metric(STEP_KEY, hidden=True)
            run.define_metric("*", step_metric=STEP_KEY)
        except Exception as error:
            self._give_up(error)

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """
        Log one row.

        :param key_values: what was recorded since the last dump
        :param key_excluded: for each key the formats that it is not meant for; this one is called ``wandb``
        :param step: time steps so far, the row's place on the x-axis
        """
        if self._failed:
            return
        row: dict[str, Any] = {}
        for key, value in filter_excluded_keys(key_values, key_excluded, "wandb").items():
            try:
                converted = to_wandb(value)
            except Exception as error:  # one bad picture must not cost the row
                if key not in self._warned_keys:
                    self._warned_keys.add(key)
                    warnings.warn(f"W&B: {key} cannot be logged ({type(error).__name__}: {error})", stacklevel=2)
                continue
            if converted is not None:
                row[key] = converted
        if row:
            self.log_row({STEP_KEY: int(step), **row})

    def log_row(self, row: dict[str, Any]) -> None:
        """
        Log values that did not come through SB3's logger.

        :param row: plain numbers and W&B's media by their names, the step among them
        """
        if self._failed:
            return
        try:
            if self.add_to_row is not None:
                self.add_to_row(row)
            self.run.log(row)
        except Exception as error:
            self._give_up(error)

    def close(self) -> None:
        """Do nothing: the run outlives SB3's logger."""

    def _give_up(self, error: Exception) -> None:
        self._failed = True
        self.warn("logging stops", error)
