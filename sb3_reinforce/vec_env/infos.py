"""Infos: a vector environment's dict of arrays becomes one dict per environment when somebody reads it."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, SupportsIndex

import numpy as np

from sb3_reinforce.vec_env.observations import rows

# The keys of SAME_STEP environments that belong to the episode that ended
_FINAL = ("final_obs", "_final_obs", "final_info", "_final_info")


def copy_arrays(infos: dict[str, Any]) -> dict[str, Any]:
    """New dicts and arrays, which the environment cannot overwrite; other objects are shared."""
    return {
        key: copy_arrays(value) if isinstance(value, dict) else value.copy() if isinstance(value, np.ndarray) else value
        for key, value in infos.items()
    }


def info_of(infos: dict[str, Any], row: int, n_rows: int) -> dict[str, Any]:
    """
    The info of one environment, as a new dict, from the vector environment's arrays and masks.

    The mask of a value is at the same key with an underscore before it, and says which environments have the value;
    without a mask all have it. A value without a row per environment (a name, a constant) belongs to all.
    """
    info: dict[str, Any] = {}
    for key, value in infos.items():
        if key[:1] == "_" and key[1:] in infos:
            continue
        mask = infos.get("_" + key)
        if mask is not None and not mask[row]:
            continue
        if isinstance(value, dict):
            value = info_of(value, row, n_rows)
        elif isinstance(value, np.ndarray) and value.shape[:1] == (n_rows,):
            value = value[row]
            if isinstance(value, np.generic):
                # Gymnasium had put a Python number into an array: users test `info["x"] is True` and write JSON
                value = value.item()
        info[key] = value
    return info


def split_final(infos: dict[str, Any], ids: np.ndarray, env: Any) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """
    Split the infos of a SAME_STEP environment in which the episodes of ``ids`` ended.

    :return: last observations of these episodes; their infos; the remaining infos, which for ``ids`` come from the reset
    :raises ValueError: if the last observations are missing
    """
    if "final_obs" not in infos:
        raise ValueError(
            "an environment with AutoresetMode.SAME_STEP must give the last observations of episodes in "
            f"infos['final_obs'], got infos with {sorted(infos)} from {env!r}: correct its "
            "metadata['autoreset_mode'], or the environment"
        )
    final_obs = infos["final_obs"]
    if isinstance(final_obs, np.ndarray) and final_obs.dtype == object:
        # Gymnasium's array of objects holds what each environment returned, and may write to again
        final_obs = [copy.deepcopy(final_obs[i]) for i in ids.tolist()]
    else:
        final_obs = rows(final_obs, ids)
    return final_obs, infos.get("final_info", {}), {key: value for key, value in infos.items() if key not in _FINAL}


@dataclass(slots=True)
class EndedEpisodes:
    """The episodes that ended in one step, as arrays with one row per episode."""

    ids: np.ndarray  # their environments, ascending
    terminal_obs: Any  # last observations: arrays, or a list of observations
    truncated: np.ndarray  # True if a time limit ended the episode, and the task did not
    returns: np.ndarray | None  # sums of rewards, float64; None if a Monitor inside puts them into the infos
    lengths: np.ndarray | None  # numbers of steps; None if returns is None
    seconds: float  # time of the step since the adapter was made
    infos: dict[str, Any]  # the vector environment's infos of the episodes' last step

    def records(self) -> list[dict[str, Any]]:
        """:return: each episode as ``Monitor`` records it, keys and rounding alike; empty if the environments have one"""
        if self.returns is None or self.lengths is None:
            return []
        seconds = round(self.seconds, 6)
        pairs = zip(self.returns.tolist(), self.lengths.tolist(), strict=True)
        return [{"r": round(total_reward, 6), "l": length, "t": seconds} for total_reward, length in pairs]


class StepInfos(list[dict[str, Any]]):
    """
    The infos of one step: a list that makes its dicts when they are first read.

    To make thousands of dicts takes longer than to step thousands of CartPoles, and most are never read. Each step has a new
    list with new dicts, which users may keep and change.

    :param blank: a list of ``None``, one per environment
    """

    __slots__ = ("_ended_missing", "_filled", "_infos", "ended")

    def __init__(self, blank: list[Any], infos: dict[str, Any], ended: EndedEpisodes | None) -> None:
        super().__init__(blank)
        self._infos = infos
        self.ended = ended
        self._ended_missing = ended is not None
        self._filled = False

    @property
    def arrays(self) -> dict[str, Any]:
        """The vector environment's own infos of the step."""
        return self._infos

    @property
    def not_made(self) -> EndedEpisodes | None:
        """The episodes that ended, where nobody has read or set their dicts, which would tell no more; None otherwise."""
        ended = self.ended if self._ended_missing else None
        return None if ended is None or ended.returns is None or ended.infos else ended

    def column(self, key: str) -> np.ndarray | None:
        """:return: the values of a key of all environments, as a new array, without making dicts; None if one lacks it"""
        value, mask = self._infos.get(key), self._infos.get("_" + key)
        if not isinstance(value, np.ndarray) or value.shape[:1] != (len(self),) or not (mask is None or mask.all()):
            return None
        column = value.copy()
        for row, info in enumerate(list.__iter__(self)):
            if info is not None:  # and may have been changed
                column[row] = info[key]
        return column

    def _make(self, env: SupportsIndex) -> dict[str, Any]:
        """Make, store and return the missing dict of an environment."""
        if self._ended_missing:
            self._make_ended()
            made: dict[str, Any] | None = list.__getitem__(self, env)
            if made is not None:
                return made
        info = info_of(self._infos, env.__index__(), len(self)) if self._infos else {}
        info["TimeLimit.truncated"] = False
        list.__setitem__(self, env, info)
        return info

    def _make_ended(self) -> None:
        """Make the dicts of all episodes that ended: whoever reads one reads all."""
        ended = self.ended
        assert ended is not None, "called only if an episode ended"
        self._ended_missing = False
        n_envs = len(self)
        terminal_obs, truncated, records = ended.terminal_obs, ended.truncated.tolist(), ended.records()
        # Dicts and tuples of arrays have no rows to index
        plain = isinstance(terminal_obs, np.ndarray | list)
        for row, env in enumerate(ended.ids.tolist()):
            info = info_of(ended.infos, env, n_envs) if ended.infos else {}
            if records:
                info["episode"] = records[row]
            info["TimeLimit.truncated"] = truncated[row]
            info["terminal_observation"] = terminal_obs[row] if plain else rows(terminal_obs, row)
            list.__setitem__(self, env, info)

    def _fill(self) -> None:
        """Make all missing dicts."""
        if not self._filled:
            self._filled = True
            for env, info in enumerate(list.__iter__(self)):
                if info is None:
                    self._make(env)

    def __getitem__(self, key: Any, /) -> Any:
        if isinstance(key, slice):
            self._fill()
        found = list.__getitem__(self, key)
        return self._make(key) if found is None else found

    def __setitem__(self, key: Any, value: Any, /) -> None:
        if isinstance(key, slice):
            self._fill()
        elif self._ended_missing:
            self._make_ended()
        list.__setitem__(self, key, value)

    def __radd__(self, other: list[Any]) -> list[Any]:
        # `[] + infos` reads the elements without calling __getitem__
        return other + list(self)

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[Any, ...]:
        # Copies and pickles are plain lists
        return list, (list(self),)


def _fill_first(name: str) -> Callable[..., Any]:
    """A method of list that reads or moves elements, preceded by making all dicts."""
    method = getattr(list, name)

    def fill_first(self: StepInfos, *args: Any) -> Any:
        self._fill()
        return method(self, *[list(arg) if isinstance(arg, StepInfos) else arg for arg in args])

    fill_first.__name__ = name
    return fill_first


for _name in (
    *("__add__", "__contains__", "__delitem__", "__eq__", "__iadd__", "__imul__", "__iter__", "__mul__", "__ne__"),
    *("__repr__", "__reversed__", "__rmul__", "append", "copy", "count", "extend", "index", "insert", "pop", "remove"),
    "reverse",
):
    setattr(StepInfos, _name, _fill_first(_name))


class ResetInfos:
    """The infos of the last reset of each environment. The dicts are made when they are read."""

    def __init__(self, dicts: list[dict[str, Any]]) -> None:
        self._dicts = dicts
        # For each environment the function that makes its dict from a row, None once the dict is made; and the row
        self._makers = np.full(len(dicts), None, dtype=object)
        self._rows = np.zeros(len(dicts), dtype=np.int64)
        self._any_infos = False

    def note(self, ids: np.ndarray, infos: dict[str, Any], rows_of: np.ndarray, n_rows: int) -> None:
        """Keep the infos of a reset: environment ``ids[i]`` is in row ``rows_of[i]`` of ``n_rows``. They must not change."""
        # Most environments never return any
        self._any_infos = self._any_infos or bool(infos)
        if self._any_infos:
            self._makers[ids] = partial(info_of, infos, n_rows=n_rows)
            self._rows[ids] = rows_of

    def read(self) -> list[dict[str, Any]]:
        """:return: one dict per environment, the same object until its next reset"""
        for env in self._makers.nonzero()[0].tolist():
            self._dicts[env] = self._makers[env](int(self._rows[env]))
            self._makers[env] = None
        return self._dicts
