"""SB3's logger -> rows of a W&B run, one for each ``logger.dump``."""

import io
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch as th
from stable_baselines3.common.logger import Figure, HParam, Image, KVWriter, Video, filter_excluded_keys

from sb3_reinforce.tracking.background import BackgroundRun
from sb3_reinforce.tracking.metrics import STEP_KEY

if TYPE_CHECKING:
    import matplotlib.figure
    import PIL.Image
    import wandb


class WandbOutputFormat(KVWriter):
    """
    Writes what SB3's logger records to a W&B run, under the same names, with the time step as the x-axis.

    The step is an ordinary metric, ``global_step``, and not W&B's own row number: that one may not go backwards
    (``learn`` called again restarts at 0) and says nothing about the environment. Images, figures, videos and arrays
    become W&B's types. Strings and ``HParam`` are left out: W&B keeps settings in its config.

    Nothing here raises: the first failure is warned about. After a row that could not be logged the writer stays
    quiet, so that tracking never stops training.

    :param run: the run to write to, started and finished by the caller
    :param add_to_row: called with each row before it is logged, to look at it or to add to it
    :param warn: called with the consequence of a failure and the error; None: a warning of Python's
    """

    def __init__(
        self,
        run: "wandb.Run | BackgroundRun",
        add_to_row: Callable[[dict[str, Any]], None] | None = None,
        warn: Callable[[str, Exception], None] | None = None,
    ) -> None:
        self.run = run
        self.add_to_row = add_to_row
        self.warn = warn
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
        :param key_excluded: for each key the formats that it is not meant for; ours is called ``wandb``
        :param step: time steps so far, the row's place on the x-axis
        """
        if self._failed:
            return
        row: dict[str, Any] = {}
        for key, value in filter_excluded_keys(key_values, key_excluded, "wandb").items():
            try:
                converted = _to_wandb(value)
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
        """Nothing to close: the run belongs to whoever started it, and outlives SB3's logger."""

    def _give_up(self, error: Exception) -> None:
        self._failed = True
        if self.warn is not None:
            self.warn("logging stops", error)
            return
        warnings.warn(f"W&B: logging stops, training goes on ({type(error).__name__}: {error})", stacklevel=3)


def histogram(values: np.ndarray, discrete: bool = False, bins: int = 20) -> "wandb.Histogram | None":
    """
    How values are distributed; NaN and infinity are left out.

    :param values: numbers, any shape
    :param discrete: whether they are small whole numbers, each of which then has a bin of its own
    :param bins: number of bins otherwise
    :return: W&B's histogram, None where there is no value
    """
    import wandb

    finite = th.as_tensor(values[np.isfinite(values)], dtype=th.float64)
    if not len(finite):
        return None
    edges: int | th.Tensor = bins
    # 511: the most bins that W&B takes
    if discrete and finite.max() - finite.min() < 511:
        edges = th.arange(finite.min().item() - 0.5, finite.max().item() + 1, dtype=th.float64)
    # as np.histogram, of which it is a quarter of the time
    counts, edges = th.histogram(finite, edges)
    return wandb.Histogram(np_histogram=(counts.long().numpy(), edges.numpy()))


def _to_wandb(value: Any) -> Any:
    """
    A recorded value as W&B understands it.

    :param value: what ``logger.record`` was given
    :return: a number or one of W&B's media; None for what is not logged
    """
    import wandb

    if value is None or isinstance(value, str | HParam):
        return None
    if isinstance(value, Video):
        # SB3 records [1, time, channel, height, width]; W&B wants the video alone. Frames may be floats in [0, 1].
        frames = value.frames.detach().cpu()
        if frames.is_floating_point():
            frames = (frames * 255).round().clamp(0, 255)
        return wandb.Video(frames[0].to(th.uint8).numpy(), fps=int(value.fps), format="mp4")
    if isinstance(value, Figure):
        return wandb.Image(_rendered(value.figure))
    if isinstance(value, Image):
        return wandb.Image(
            value.image if isinstance(value.image, str) else _height_width_channel(value.image, value.dataformats)
        )
    if isinstance(value, th.Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray | list | tuple):
        array = np.asarray(value)
        if array.size == 0 or array.dtype.kind not in "biuf":
            return None
        if array.size == 1:
            return array.item()
        return histogram(array, bins=64)
    if isinstance(value, np.generic):
        return value.item()
    return value if isinstance(value, bool | int | float) else None


def _rendered(figure: "matplotlib.figure.Figure") -> "PIL.Image.Image":
    """
    A figure as pixels; given the figure itself, W&B fails unless pyplot was imported.

    :param figure: a matplotlib figure
    :return: its picture
    """
    import PIL.Image

    png = io.BytesIO()
    figure.savefig(png, format="png")
    return PIL.Image.open(png)


def _height_width_channel(image: th.Tensor | np.ndarray, dataformats: str) -> np.ndarray:
    """
    An image in the order of axes that W&B expects.

    :param image: the pixels; of a batch the first image is taken
    :param dataformats: the axes' meaning, TensorBoard's letters: HW, HWC, CHW, NHWC, NCHW, ...
    :return: the pixels, shape [H, W] or [H, W, C]
    :raises ValueError: if the letters do not describe the image
    """
    pixels = image.detach().cpu().numpy() if isinstance(image, th.Tensor) else np.asarray(image)
    axes = dataformats.upper()
    if len(axes) != pixels.ndim or len(set(axes)) != len(axes) or not {"H", "W"} <= set(axes) <= set("NHWC"):
        raise ValueError(
            f"dataformats must name each axis of the image once, out of NHWC, got {dataformats!r} for {pixels.shape}"
        )
    if "N" in axes:
        pixels = pixels.take(0, axis=axes.index("N"))
        axes = axes.replace("N", "")
    return pixels.transpose([axes.index(axis) for axis in "HWC" if axis in axes])
