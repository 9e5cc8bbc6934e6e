"""Decides per frame whether a camera can see: strobed emitters, darkness, dead emitters, frozen and covered cameras.

Gray levels are 8-bit, 0..255. About 8,000 evenly spread pixels of each frame give:

- `p99`, the 99th percentile: below 4 the frame is black (a damaged read, or no light) and holds only noise.
- the ratio of signal to noise (`signal_noise`): a dim image shows faces as long as they stand out of the noise.
- `top`, the mean of the brightest tenth: how well the scene is lit. The mean of all pixels does not show it: a well lit
  face may fill a twentieth of a dark room.

A camera counts as able to see until the opposite is proven over time.
"""

import math
import zlib
from collections import deque
from dataclasses import dataclass
from typing import Deque, NamedTuple, Optional, Sequence

import numpy as np

from edge_agent.core.camera.signal_noise import FaintTimer, signal_to_noise
from edge_agent.core.frame import Levels
from edge_agent.core.params import param
from edge_agent.core.types import Array, Sight

_SAMPLED_PX = 8192

# p99 below the first is black; a dark camera counts as lit again from the second on.
_BLACK = 4
_LIT_AGAIN = 6

# Strobe patterns have one or two dark frames in a row. A longer run makes the sight doubtful until darkness is proven,
# so a wrong classification cannot suppress a camera's frames for long.
_MAX_DROPS = 3

# Lit, or structured, frames that end a blindness: a single one could be a damaged read.
_LIT_FRAMES = 2


@dataclass(frozen=True)
class VisibilityParams:
    """When a camera that delivers frames counts as unable to see.

    The defaults for dark and covered are shorter than presence's `delay_off_s`, so presence becomes "cannot see" before
    a face that the camera can no longer see could count as gone.
    """

    drop_dark_frames: bool = param(
        True,
        "Drop the dark frames of a strobed emitter; off: every frame is inferred, and faces flicker",
        restart=True,
    )
    dark_after_s: float = param(
        1.5,
        "Seconds without light, or with so little that faces drown in noise, after which the camera counts as dark; "
        "raise it to tolerate longer blackouts",
        ge=0.2,
        le=60,
        restart=True,
    )
    frozen_after_s: float = param(
        5.0,
        "Seconds of bit-identical frames after which a sensor counts as frozen; 0 turns it off",
        ge=0,
        le=3600,
        restart=True,
    )
    frozen_stream_after_s: float = param(
        60.0,
        "The same for encoded streams, where a codec may repeat a frame; 0 turns it off",
        ge=0,
        le=3600,
        restart=True,
    )
    covered_after_s: float = param(
        1.5,
        "Seconds without any structure in the image after which the camera counts as covered; 0 turns it off, for "
        "cameras that face a plain wall",
        ge=0,
        le=3600,
        restart=True,
    )


class Visibility(NamedTuple):
    """Classification of one frame.

    Attributes:
        keep: Whether the frame is inferred.
        sight: Whether the camera can see.
        doubt: True while blindness is suspected and not yet proven, with `sight` still OK: faces that are not seen
            meanwhile do not count as gone.
        faint: True for a frame so noisy that some faces are missed, with `sight` OK: likewise, but the frame is kept.
    """

    keep: bool
    sight: Sight
    doubt: bool = False
    faint: bool = False


class Light(NamedTuple):
    """Brightness of a frame, gray levels: 99th percentile, mean of the brightest tenth, median."""

    p99: int
    top: float
    median: int


class VisibilityMonitor:
    """Classifies every frame of one camera, in its capture thread; about 0.1 ms per frame.

    While the camera can see without doubt, at most three frames in a row are dropped. The sight is `STARTING` until the
    first lit frame with structure, so a camera that starts blind never reports "no face".

    Args:
        params: Times.
        kind: `Source.kind`: "sensor", "encoded" or "still".
        dark_means: `CameraParams.dark_means`; with "nobody" black frames are kept, as of a camera that sees.
    """

    def __init__(self, params: VisibilityParams, kind: str, dark_means: str = "cannot_see") -> None:
        self._params = params
        self._dark_is_nobody = dark_means == "nobody"
        self._frozen_after_s = {"sensor": params.frozen_after_s, "encoded": params.frozen_stream_after_s}.get(kind, 0.0)
        self._strobe = StrobeDetector()
        self._darkness = _DarknessTimer(params.dark_after_s)
        self._cover = _CoverTimer(params.covered_after_s, kind == "encoded")
        self._noise = _NoiseTimer(params.dark_after_s, kind == "encoded")
        self._freeze = FreezeDetector()
        self._drops = 0

    @property
    def strobed(self) -> bool:
        """Whether a strobed emitter was detected."""
        return self._strobe.split is not None

    def observe(self, pixels: Array, levels: Levels, t: float) -> Visibility:
        """Classify one frame.

        Args:
            pixels: (H, W) uint8 or uint16, or (H, W, 3) uint8, as captured; read only.
            levels: Conversion to 8-bit. It must be constant: one that follows the brightness would hide darkness.
            t: Monotonic seconds of the frame.
        """
        plane = pixels if pixels.ndim == 2 else pixels[:, :, 1]
        step = max(1, math.isqrt(plane.size // _SAMPLED_PX))
        sample = plane[::step, ::step]
        light = brightness(levels.to_gray8(sample))
        dark = self._strobe.observe(light.top) or light.p99 < _BLACK
        sight = self._darkness.observe(light, self._strobe, t)
        black = sight is Sight.DARK
        if sight is Sight.OK and not dark:
            sight = self._cover.observe(plane, levels, light, t)
            if sight is Sight.OK and not self._cover.doubt:
                sight = self._noise.observe(plane, levels, light, t)
        elif sight is Sight.OK:
            sight = self._cover.sight if self._cover.sight is not Sight.OK else self._noise.sight
        black = black or (sight is Sight.DARK and self._cover.sight is Sight.DARK)
        if black and self._dark_is_nobody:
            return Visibility(True, Sight.OK)
        # Black and saturated frames may repeat on a working camera, so only a seeing one can be frozen.
        if sight is Sight.OK and 0 < self._frozen_after_s <= self._freeze.observe(sample, pixels, t):
            sight = Sight.FROZEN
        doubt = sight is Sight.OK and (self._darkness.doubt or self._cover.doubt or self._noise.timer.doubt)
        faint = sight is Sight.OK and self._noise.timer.faint
        return Visibility(self._keep(dark, sight.can_see and not doubt), sight, doubt, faint)

    def _keep(self, dark: bool, sees: bool) -> bool:
        if not sees:
            self._drops = 0
            return False
        if dark and self._params.drop_dark_frames and self._drops < _MAX_DROPS:
            self._drops += 1
            return False
        self._drops = 0
        return True


def brightness(gray: Array) -> Light:
    """Brightness of a (H, W) uint8 image."""
    ordered = np.sort(gray, axis=None, kind="stable")  # numpy's radix sort, in one pass
    total = len(ordered)
    tenth = max(1, total // 10)
    top = int(ordered[-tenth:].sum()) / tenth
    return Light(int(ordered[_rank(0.99, total)]), top, int(ordered[_rank(0.5, total)]))


def _rank(fraction: float, total: int) -> int:
    """Index of the smallest of `total` sorted values that at least this fraction of them does not exceed."""
    return math.ceil(fraction * total) - 1


# Two clusters of `top` are a strobe when their gap exceeds both: gray levels, and a fraction of the upper cluster.
_MIN_GAP = 12.0
_MIN_GAP_FRACTION = 0.35
_WINDOW = 16
_SHORT_WINDOW = 8
_MIN_WINDOW = 6


class StrobeDetector:
    """Detects an emitter that alternates lit and dark frames (1:1, 2:1, 1:2), from the last 16 values of `top`.

    Attributes:
        split: Values below it are dark frames; None while no strobe is known. It is kept after the strobe ends, so that
            a dead emitter is detected, until all of the last 16 frames were lit.
    """

    def __init__(self) -> None:
        self.split: Optional[float] = None
        self._window: Deque[float] = deque(maxlen=_WINDOW)

    def observe(self, top: float) -> bool:
        """True when this frame is a dark one of a running strobe."""
        self._window.append(top)
        values = list(self._window)
        split, proven = None, False
        if self.split is not None:
            # When the ambient light changes, both clusters move: the newest values show it earlier.
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

    def reset(self) -> None:
        """Discard the strobe: the ambient light suffices without the emitter."""
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
    if gaps[widest] <= max(_MIN_GAP, _MIN_GAP_FRACTION * upper[len(upper) // 2]):
        return None
    split = (ordered[widest] + ordered[widest + 1]) / 2.0
    lit = [value >= split for value in values]
    changes = sum(before != after for before, after in zip(lit, lit[1:]))
    return split if 2 * changes >= len(values) else None


# Dark frames in a row that prove darkness: more than any strobe pattern has, and a whole short window.
_DARK_RUN = 8

# At this `top` (a quarter of full scale) the ambient light suffices without an emitter.
_AMBIENT = 64.0


class _DarknessTimer:
    """DARK after a time without lit frames; EMITTER when a strobe has lost its lit frames and dark ones continue."""

    def __init__(self, after_s: float) -> None:
        self._after_s = after_s
        self._sight = Sight.STARTING
        self._since: Optional[float] = None
        self._dark_run = 0
        self._lit_frames = 0

    @property
    def doubt(self) -> bool:
        """More dark frames in a row than a strobe has."""
        return self._dark_run > _MAX_DROPS

    def observe(self, light: Light, strobe: StrobeDetector, t: float) -> Sight:
        """OK, STARTING, DARK or EMITTER. Resets a strobe whose dark frames are bright enough."""
        blind = self._sight in (Sight.DARK, Sight.EMITTER)
        unlit = strobe.split is not None and light.top < strobe.split
        if light.p99 < (_LIT_AGAIN if blind else _BLACK) or unlit:
            self._dark_run += 1
            if self._since is None:
                self._since = t
            if self._dark_run > _MAX_DROPS:
                self._lit_frames = 0
            if self._dark_run >= _DARK_RUN and t - self._since >= self._after_s:
                if unlit and light.top >= _AMBIENT:
                    strobe.reset()
                elif not blind:
                    self._sight = Sight.DARK if strobe.split is None else Sight.EMITTER
        else:
            self._since, self._dark_run = None, 0
            self._lit_frames += 1
            if not blind or self._lit_frames >= _LIT_FRAMES:
                self._sight = Sight.OK
        return self._sight


_COVER_INTERVAL_S = 0.19

# A flat frame this dim is dark, not covered: sensors add a black level of up to 16 (OV9281: 64 of 1023).
_BLACK_LEVEL = 24


class _CoverTimer:
    """COVERED after a time without structure; DARK when the flat frame is no brighter than a sensor's black level."""

    def __init__(self, after_s: float, encoded: bool) -> None:
        self._after_s = after_s
        self._detector = CoverDetector(encoded)
        self._since: Optional[float] = None
        self._structured = 0
        self._next_t = -math.inf
        self.sight = Sight.STARTING if after_s > 0 else Sight.OK

    @property
    def doubt(self) -> bool:
        """Whether the last examined frame was flat."""
        return self._since is not None

    def observe(self, plane: Array, levels: Levels, light: Light, t: float) -> Sight:
        """OK, STARTING, COVERED or DARK; examines about five frames per second."""
        if self._after_s <= 0 or t < self._next_t:
            return self.sight
        self._next_t = t + _COVER_INTERVAL_S
        blind = self.sight in (Sight.COVERED, Sight.DARK)
        if not self._detector.observe(plane, levels, blind):
            self._since = None
            self._structured += 1
            if not blind or self._structured >= _LIT_FRAMES:
                self.sight = Sight.OK
            return self.sight
        self._structured = 0
        if self._since is None:
            self._since = t
        elif t - self._since >= self._after_s and not blind:
            self.sight = Sight.DARK if light.median <= _BLACK_LEVEL else Sight.COVERED
        return self.sight


class _NoiseTimer:
    """DARK after a time in which no face would stand out of the noise."""

    def __init__(self, after_s: float, encoded: bool) -> None:
        self.timer = FaintTimer(after_s)
        self._encoded = encoded
        self._next_t = -math.inf

    @property
    def sight(self) -> Sight:
        return Sight.DARK if self.timer.blind else Sight.OK

    def observe(self, plane: Array, levels: Levels, light: Light, t: float) -> Sight:
        """OK or DARK; examines about five frames per second."""
        if t >= self._next_t:
            self._next_t = t + _COVER_INTERVAL_S
            self.timer.observe(signal_to_noise(plane, levels, light.top, self._encoded), t)
        return self.sight


_ROWS, _COLUMNS = 16, 20
_CELLS = 4
_DEVIATIONS = 5.0
_FLOOR_RAW = 0.4
_FLOOR_ENCODED = 0.75
_AVERAGED = 8

# Hysteresis: structure ends a cover when it exceeds the limit by this factor.
_CLEAR = 1.5

_COVER_SAMPLED_PX = 65536
_SATURATED = 240

# Deviation of a normal distribution by its median absolute deviation.
_BY_MEDIAN = 1.4826


class CoverDetector:
    """Detects flat images, and distinguishes them from dim or low-contrast rooms. Used by one thread.

    The image is reduced to the means m of 16 x 20 blocks. Each mean is compared with a cubic interpolation of its
    neighbours in the row, and likewise in the column:

        r[i] = m[i] - (4 (m[i-1] + m[i+1]) - (m[i-2] + m[i+2])) / 6        (a sixth of the fourth difference)

    A hand on the lens is out of focus: whatever its glow or gradient, it is smooth over blocks and cancels, while edges
    in focus leave half of their height. The noise is measured in the same image: a block is 4 x 4 cells, and if s is
    the deviation of the cells' r (1.48 times the median of |r|, so that the few cells with edges do not count), that of
    the blocks' r is s / 4, for white noise and for codec blocks. The largest of some 600 values exceeds five deviations
    once in 3,000 images. So an image is flat when

        max |r| <= sqrt(floor^2 + (5 s / 4)^2)       gray levels

    The floor stands for rounding and fixed patterns in raw pixels, and for quantisation in encoded ones, which turns
    noise into patterns. Measured at 640 x 480: the average of eight uniform or glowing images (noise 3, JPEG of quality
    50 to 90 or H.264 of CRF 23 to 28) leaves at most 0.72; that of 78 real images, dimmed until their brightest percent
    is at 8 of 255, at least 1.1.

    The means are also averaged over about 8 successive flat images, which lowers s by 2.8: a static room that the noise
    of one image hides shows in eight. Saturated cells are ignored: clipping bends a smooth glow.

    Args:
        encoded: Whether the frames come out of a codec.
    """

    def __init__(self, encoded: bool) -> None:
        self._floor = _FLOOR_ENCODED if encoded else _FLOOR_RAW
        self._mean: Optional[Array] = None
        self._count = 0

    def observe(self, plane: Array, levels: Levels, covered: bool) -> bool:
        """True when the image, and the average of the flat ones before it, show no structure.

        Args:
            plane: (H, W) uint8 or uint16, raw; may be a strided view. An image under 80 x 64 px is never flat.
            levels: Conversion to 8-bit.
            covered: Whether the camera counts as covered now, so that only clear structure ends it.
        """
        if plane.shape[0] < _ROWS * _CELLS or plane.shape[1] < _COLUMNS * _CELLS:
            return False
        step = max(1, math.isqrt(plane.size // _COVER_SAMPLED_PX))
        cells = _cell_means(levels.to_gray8(plane[::step, ::step]))
        means = cells.reshape(_ROWS, _CELLS, _COLUMNS, _CELLS).mean(axis=(1, 3))
        deviation = _BY_MEDIAN * float(np.median(_abs_residuals(cells))) / _CELLS
        excess = self._excess(means, deviation)
        if excess > _CLEAR:
            self._mean, self._count = None, 0
            return False
        self._count = min(self._count + 1, _AVERAGED)
        self._mean = means if self._mean is None else self._mean + (means - self._mean) / self._count
        averaged_excess = self._excess(self._mean, deviation / math.sqrt(self._count))
        return max(excess, averaged_excess) <= (_CLEAR if covered else 1.0)

    def _excess(self, means: Array, deviation: float) -> float:
        """Structure as a multiple of the limit."""
        return float(_abs_residuals(means).max()) / math.hypot(self._floor, _DEVIATIONS * deviation)


def _cell_means(gray: Array) -> Array:
    """(64, 80) float64 means of a (H, W) uint8 image's cells, NaN where saturated; cell sizes differ by up to 1 px."""
    height, width = gray.shape
    rows = np.arange(_ROWS * _CELLS) * height // (_ROWS * _CELLS)
    columns = np.arange(_COLUMNS * _CELLS) * width // (_COLUMNS * _CELLS)
    sums = np.add.reduceat(np.add.reduceat(gray, rows, axis=0, dtype=np.uint32), columns, axis=1)
    means = sums / np.outer(np.diff(rows, append=height), np.diff(columns, append=width))
    return np.where(means < _SATURATED, means, np.nan)


def _abs_residuals(means: Array) -> Array:
    """(N,) |r| along rows and columns without those that involve a NaN; a single 0 when all do."""
    both = np.concatenate([_residuals(means).ravel(), _residuals(means.T).ravel()])
    known = np.abs(both[~np.isnan(both)])
    return known if known.size else np.zeros(1)


def _residuals(m: Array) -> Array:
    return np.asarray(m[2:-2] - (4.0 * (m[1:-3] + m[3:-1]) - (m[:-4] + m[4:])) / 6.0)


# A camera with a strobed emitter can freeze on a lit and a dark frame in turn.
_DISTINCT = 2

# A silent source is not a frozen one: this many repeats have to be received as well.
_MIN_REPEATS = 4


class FreezeDetector:
    """Measures for how long the same one or two frames have repeated. Used by one thread.

    It compares a sparse sample of every frame, and only when that repeats a CRC-32 of all pixels. So a dim, quiet room,
    where few pixels flicker, does not count as frozen: a live sensor always changes some pixel (CRC-32 misses a change
    once in 2^32).
    """

    def __init__(self) -> None:
        self._samples: Deque[bytes] = deque(maxlen=_DISTINCT)
        self._checksums: Deque[int] = deque(maxlen=_DISTINCT)
        self._since: Optional[float] = None
        self._repeats = 0

    def observe(self, sample: Array, pixels: Array, t: float) -> float:
        """Seconds since the last new frame; 0 when this frame is new.

        Args:
            sample: A sparse view of `pixels`, always at the same positions.
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
