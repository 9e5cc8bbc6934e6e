"""Can a camera see? Strobed emitters, darkness, dead emitters, frozen and covered cameras.

Gray levels are 8-bit, 0..255. Of every frame, about 8,000 evenly spread pixels are looked at:

- `p99`, the 99th percentile: below 4 the frame is black (a bad read, or no light): nothing but noise is in it.
- `top`, the mean of the brightest tenth: how well it is lit. The whole mean would not do: a face that an emitter
  lights well may fill a twentieth of a dark room.

On any doubt a camera counts as seeing: "cannot see" has to be proven over time.
"""

import math
import zlib
from collections import deque
from dataclasses import dataclass
from typing import Deque, NamedTuple, Optional, Sequence

import numpy as np

from edge_agent.core.frame import Levels
from edge_agent.core.params import param
from edge_agent.core.types import Array, Sight

# A camera whose emitter strobes can freeze on a lit and a dark picture in turn.
_DISTINCT = 2

# Silence of the source is not repetition: so many repeats have to be seen as well.
_MIN_REPEATS = 4


class FreezeDetector:
    """How long the same one or two pictures have come again and again. Used by one thread.

    Two levels: a sparse sample of every frame (free), and only when that repeats a CRC-32 of all pixels, so that a
    dim and quiet room, where few pixels flicker, does not pass for a frozen one: a live sensor always changes some
    pixel (2^-32 is the chance to miss it once).
    """

    def __init__(self) -> None:
        self._samples: Deque[bytes] = deque(maxlen=_DISTINCT)
        self._checksums: Deque[int] = deque(maxlen=_DISTINCT)
        self._since: Optional[float] = None
        self._repeats = 0

    def observe(self, sample: Array, pixels: Array, t: float) -> float:
        """Seconds that nothing new has been seen; 0 when this frame is new.

        Args:
            sample: A sparse view of `pixels`, always at the same places.
            pixels: The raw frame; read only when the sample repeats.
            t: Monotonic seconds of the frame.
        """
        if self._is_new(sample.tobytes(), pixels):
            self._since, self._repeats = t, 0
        else:
            self._repeats += 1
        if self._since is None or self._repeats < _MIN_REPEATS:
            return 0.0
        return t - self._since

    def _is_new(self, sample: bytes, pixels: Array) -> bool:
        if sample not in self._samples:
            self._samples.append(sample)
            return True
        checksum = zlib.crc32(np.ascontiguousarray(pixels).data)
        if checksum not in self._checksums:
            self._checksums.append(checksum)
            return True
        return False


_ROWS, _COLUMNS = 16, 20
_CELLS = 4
_DEVIATIONS = 5.0
_FLOOR_RAW = 0.4
_FLOOR_ENCODED = 0.75
_AVERAGED = 8

# Structure is clear, and ends a cover (hysteresis), when it exceeds the limit so many times.
_CLEAR = 1.5

# About so many pixels are looked at, evenly spread.
_SAMPLED_PX_FLATNESS = 65536

_SATURATED = 240

# Deviation of a normal distribution by its median absolute deviation.
_BY_MEDIAN = 1.4826


class CoverDetector:
    """Whether successive pictures are flat. Used by one thread.

    Args:
        encoded: Whether the pictures come out of a codec.
    """

    def __init__(self, encoded: bool) -> None:
        self._floor = _FLOOR_ENCODED if encoded else _FLOOR_RAW
        self._mean: Optional[Array] = None
        self._count = 0

    def observe(self, plane: Array, levels: Levels, covered: bool) -> bool:
        """True when the picture, and the average of the flat ones before it, show no structure.

        Args:
            plane: (H, W) uint8 or uint16, raw; may be a strided view. A picture under 80 x 64 px is not flat.
            levels: How it becomes 8-bit.
            covered: Whether the camera counts as covered now, so that clear structure is asked for to leave that.
        """
        if plane.shape[0] < _ROWS * _CELLS or plane.shape[1] < _COLUMNS * _CELLS:
            return False
        step = max(1, math.isqrt(plane.size // _SAMPLED_PX_FLATNESS))
        cells = cell_means(levels.to_gray8(plane[::step, ::step]))
        means = cells.reshape(_ROWS, _CELLS, _COLUMNS, _CELLS).mean(axis=(1, 3))
        deviation = _BY_MEDIAN * float(np.median(_roughness(cells))) / _CELLS
        excess = self._excess(means, deviation)
        if excess > _CLEAR:
            self._mean, self._count = None, 0
            return False
        self._count = min(self._count + 1, _AVERAGED)
        self._mean = means if self._mean is None else self._mean + (means - self._mean) / self._count
        averaged_excess = self._excess(self._mean, deviation / math.sqrt(self._count))
        return max(excess, averaged_excess) <= (_CLEAR if covered else 1.0)

    def _excess(self, means: Array, deviation: float) -> float:
        """Structure as a multiple of what noise explains."""
        return float(_roughness(means).max()) / math.hypot(self._floor, _DEVIATIONS * deviation)


def cell_means(gray: Array) -> Array:
    """(64, 80) float64 means of a (H, W) uint8 picture's cells, NaN where saturated; they differ by one px in size."""
    height, width = gray.shape
    rows = np.arange(_ROWS * _CELLS) * height // (_ROWS * _CELLS)
    columns = np.arange(_COLUMNS * _CELLS) * width // (_COLUMNS * _CELLS)
    sums = np.add.reduceat(np.add.reduceat(gray, rows, axis=0, dtype=np.uint32), columns, axis=1)
    means = sums / np.outer(np.diff(rows, append=height), np.diff(columns, append=width))
    return np.where(means < _SATURATED, means, np.nan)


def _roughness(means: Array) -> Array:
    """All |r| (see above) along rows and columns, as (N,), those that touch a NaN left out; one 0 when all do."""
    both = np.concatenate([_residuals(means).ravel(), _residuals(means.T).ravel()])
    known = np.abs(both[~np.isnan(both)])
    return known if known.size else np.zeros(1)


def _residuals(m: Array) -> Array:
    return np.asarray(m[2:-2] - (4.0 * (m[1:-3] + m[3:-1]) - (m[:-4] + m[4:])) / 6.0)


_SAMPLED_PX = 8192

# p99 below the first is black; a camera that was dark is lit again from the second on.
_BLACK = 4
_LIT_AGAIN = 6

# A flat picture this dim is dark, not covered: sensors add a black level of up to 16 (OV9281: 64 of 1023).
_PEDESTAL = 24

# With so bright a `top` (a quarter of full scale) ambient light does without an emitter.
_AMBIENT = 64.0

# Two clusters of `top` are a strobe when they lie so far apart: absolutely, and relative to the high one.
_MIN_GAP = 12.0
_MIN_GAP_PART = 0.35
_WINDOW = 16
_SHORT_WINDOW = 8
_MIN_WINDOW = 6

# Frames dropped in a row at most while the camera can see: strobe patterns have one or two dark frames in a row. What
# goes on longer puts its sight in doubt, for the time that proves darkness; a wrong judgement cannot silence a camera.
_MAX_DROPS = 3

# Dark frames in a row that prove darkness: more than any strobe pattern has, and a short window full of them.
_DARK_RUN = 8

# Lit, or structured, frames that end a blindness: one could be a damaged read.
_LIT_FRAMES = 2

_FLATNESS_EVERY_S = 0.19


@dataclass(frozen=True)
class VisibilityParams:
    """When a camera that delivers frames counts as unable to see all the same.

    The defaults for dark and covered are shorter than presence's `delay_off_s`: presence turns "cannot see" before an
    unseen face could count as gone.
    """

    drop_dark_frames: bool = param(
        True,
        "Drop the dark frames of a strobed emitter; off: every frame is looked at, and faces flicker",
        restart=True,
    )
    dark_after_s: float = param(
        1.5,
        "Seconds without light after which the camera counts as dark; more rides out longer blackouts",
        ge=0.2,
        le=60,
        restart=True,
    )
    frozen_after_s: float = param(
        5.0,
        "Seconds of bit-identical pictures after which a sensor counts as frozen; 0 turns it off",
        ge=0,
        le=3600,
        restart=True,
    )
    frozen_stream_after_s: float = param(
        60.0,
        "Likewise for encoded streams, where a codec may rightly repeat a picture; 0 turns it off",
        ge=0,
        le=3600,
        restart=True,
    )
    covered_after_s: float = param(
        1.5,
        "Seconds without any structure in the picture after which the camera counts as covered; 0 turns it off, for "
        "cameras that look at nothing but a plain wall",
        ge=0,
        le=3600,
        restart=True,
    )


class Visibility(NamedTuple):
    """What is thought of one frame.

    Attributes:
        keep: Whether it is worth looking for faces in it.
        sight: Whether the camera can see.
        doubt: True while blindness is suspected and not yet proven, with `sight` still OK: whoever is not seen
            meanwhile must not be taken to have left.
    """

    keep: bool
    sight: Sight
    doubt: bool = False


class Light(NamedTuple):
    """How bright a frame is, gray levels: 99th percentile, mean of the brightest tenth, and median."""

    p99: int
    top: float
    median: int


class VisibilityMonitor:
    """Watches every frame of one camera, in the thread that captures it; about 0.1 ms per frame.

    While the camera can see without doubt, at most three frames in a row are dropped. Until the first lit frame that
    shows some structure the sight is `STARTING`, so that a camera which begins blind never says "no face".

    Args:
        params: Times.
        kind: `Source.kind`: "sensor", "encoded" or "still".
    """

    def __init__(self, params: VisibilityParams, kind: str) -> None:
        self._params = params
        self._frozen_after_s = {"sensor": params.frozen_after_s, "encoded": params.frozen_stream_after_s}.get(kind, 0.0)
        self._strobe = Strobe()
        self._darkness = _Darkness(params.dark_after_s)
        self._cover = _Cover(params.covered_after_s, kind == "encoded")
        self._repetition = FreezeDetector()
        self._drops = 0

    @property
    def strobed(self) -> bool:
        """Whether the emitter strobes, as far as is known."""
        return self._strobe.split is not None

    def observe(self, pixels: Array, levels: Levels, t: float) -> Visibility:
        """Judge one frame.

        Args:
            pixels: (H, W) uint8 or uint16, or (H, W, 3) uint8, as captured; only read.
            levels: How they become 8-bit. A fixed conversion: one that follows the brightness would hide darkness.
            t: Monotonic seconds of the frame.
        """
        plane = pixels if pixels.ndim == 2 else pixels[:, :, 1]
        step = max(1, math.isqrt(plane.size // _SAMPLED_PX))
        sample = plane[::step, ::step]
        light = brightness(levels.to_gray8(sample))
        dark = self._strobe.observe(light.top) or light.p99 < _BLACK
        sight = self._darkness.observe(light, self._strobe, t)
        if sight is Sight.OK and not dark:
            sight = self._cover.observe(plane, levels, light, t)
        elif sight is Sight.OK:
            sight = self._cover.sight
        # Black and saturated pictures may rightly repeat, so only a seeing camera can be frozen.
        if sight is Sight.OK and 0 < self._frozen_after_s <= self._repetition.observe(sample, pixels, t):
            sight = Sight.FROZEN
        doubt = sight is Sight.OK and (self._darkness.doubt or self._cover.doubt)
        return Visibility(self._keep(dark, sight.can_see and not doubt), sight, doubt)

    def _keep(self, dark: bool, sees: bool) -> bool:
        if not sees:
            self._drops = 0
            return False
        if dark and self._params.drop_dark_frames and self._drops < _MAX_DROPS:
            self._drops += 1
            return False
        self._drops = 0
        return True


class Strobe:
    """Finds out whether an emitter alternates lit and dark frames (1:1, 2:1, 1:2), by the last 16 values of `top`.

    Attributes:
        split: Values below it are dark frames; None while no strobe is known. It outlives the strobe, so that an
            emitter that dies is noticed, until all of the last 16 frames were lit.
    """

    def __init__(self) -> None:
        self.split: Optional[float] = None
        self._window: Deque[float] = deque(maxlen=_WINDOW)

    def observe(self, top: float) -> bool:
        """True when this frame is a dark one of a strobe that goes on."""
        self._window.append(top)
        values = list(self._window)
        split, proven = None, False
        if self.split is not None:
            # When the light around it changes, so do both clusters: the newest values tell sooner.
            split = strobe_split(values[-_SHORT_WINDOW:])
            proven = split is not None
        if split is None:
            split = strobe_split(values)
            proven = split is not None and len(values) == _WINDOW
        if proven:
            self.split = split
        elif self.split is not None and min(values) >= self.split:
            self.split = None
        return split is not None and top < split

    def forget(self) -> None:
        """Ambient light does without the emitter."""
        self.split = None


def strobe_split(values: Sequence[float]) -> Optional[float]:
    """The value between the lit and the dark frames of a strobe, or None when successive `values` show none.

    The widest gap between the sorted values has to exceed 12 gray levels and 35 % of the upper cluster's median, and
    the values have to change sides at least every other frame on average: a lamp switched off changes once.
    """
    if len(values) < _MIN_WINDOW:
        return None
    ordered = sorted(values)
    gaps = [high - low for low, high in zip(ordered, ordered[1:])]
    widest = max(range(len(gaps)), key=gaps.__getitem__)
    upper = ordered[widest + 1 :]
    if gaps[widest] <= max(_MIN_GAP, _MIN_GAP_PART * upper[len(upper) // 2]):
        return None
    split = (ordered[widest] + ordered[widest + 1]) / 2.0
    lit = [value >= split for value in values]
    changes = sum(before != after for before, after in zip(lit, lit[1:]))
    return split if 2 * changes >= len(values) else None


def brightness(gray: Array) -> Light:
    """Of a (H, W) uint8 picture."""
    ordered = np.sort(gray, axis=None, kind="stable")  # numpy's radix sort, in one pass
    total = len(ordered)
    tenth = max(1, total // 10)
    top = int(ordered[-tenth:].sum()) / tenth
    return Light(int(ordered[_rank(0.99, total)]), top, int(ordered[_rank(0.5, total)]))


def _rank(part: float, total: int) -> int:
    """Index of the least of `total` ordered values that at least this part of them does not exceed."""
    return math.ceil(part * total) - 1


class _Darkness:
    """No lit frame for long: DARK, or EMITTER where a strobe has lost its lit frames while dark ones go on."""

    def __init__(self, after_s: float) -> None:
        self._after_s = after_s
        self._sight = Sight.STARTING
        self._since: Optional[float] = None
        self._run = 0
        self._lit = 0

    @property
    def doubt(self) -> bool:
        """More dark frames in a row than a strobe has."""
        return self._run > _MAX_DROPS

    def observe(self, light: Light, strobe: Strobe, t: float) -> Sight:
        """OK, STARTING, DARK or EMITTER. Forgets a strobe whose dark frames are bright enough to see by."""
        blind = self._sight in (Sight.DARK, Sight.EMITTER)
        unlit = strobe.split is not None and light.top < strobe.split
        if light.p99 < (_LIT_AGAIN if blind else _BLACK) or unlit:
            self._run += 1
            if self._since is None:
                self._since = t
            if self._run > _MAX_DROPS:
                self._lit = 0
            if self._run >= _DARK_RUN and t - self._since >= self._after_s:
                if unlit and light.top >= _AMBIENT:
                    strobe.forget()
                elif not blind:
                    self._sight = Sight.DARK if strobe.split is None else Sight.EMITTER
        else:
            self._since, self._run = None, 0
            self._lit += 1
            if not blind or self._lit >= _LIT_FRAMES:
                self._sight = Sight.OK
        return self._sight


class _Cover:
    """No structure for long: COVERED, or DARK where the flat picture is no brighter than a sensor's black level."""

    def __init__(self, after_s: float, encoded: bool) -> None:
        self._after_s = after_s
        self._flatness = CoverDetector(encoded)
        self._since: Optional[float] = None
        self._structured = 0
        self._due_t = -math.inf
        self.sight = Sight.STARTING if after_s > 0 else Sight.OK

    @property
    def doubt(self) -> bool:
        """The last picture looked at was flat."""
        return self._since is not None

    def observe(self, plane: Array, levels: Levels, light: Light, t: float) -> Sight:
        """OK, STARTING, COVERED or DARK; looks at about five frames per second."""
        if self._after_s <= 0 or t < self._due_t:
            return self.sight
        self._due_t = t + _FLATNESS_EVERY_S
        blind = self.sight in (Sight.COVERED, Sight.DARK)
        if not self._flatness.observe(plane, levels, blind):
            self._since = None
            self._structured += 1
            if not blind or self._structured >= _LIT_FRAMES:
                self.sight = Sight.OK
            return self.sight
        self._structured = 0
        if self._since is None:
            self._since = t
        elif t - self._since >= self._after_s and not blind:
            self.sight = Sight.DARK if light.median <= _PEDESTAL else Sight.COVERED
        return self.sight
