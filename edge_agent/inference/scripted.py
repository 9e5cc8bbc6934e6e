"""An engine without a network: it sees bright markers, and answers as FaceDetectIR would. For tests and soak runs."""

import threading
import time
from typing import Dict, List, Mapping, Optional, Set, Tuple
from urllib.parse import parse_qsl

import numpy as np

from edge_agent.core.detection.model_contract import ModelContract
from edge_agent.core.frame import Image
from edge_agent.core.ports import BufferPool
from edge_agent.core.types import Array, EngineInfo
from edge_agent.errors import EngineError, InputError

_SAMPLES = 6  # samples per cell and direction
_BRIGHT = 170.0  # gray level that a marker must reach, and
_CONTRAST = 60.0  # how far above the picture's mean
_SEEN = 0.35  # one cell of a marker must be bright to this part
_TOUCHED = 0.1  # and each of its cells to this part
_COVERAGE = 0.95
_OPTIONS = ("fail_after", "hang_after", "open_s", "slow_s", "wrong_golden")

Cell = Tuple[int, int]


class ScriptedEngine:
    """Finds bright markers (`test://one`, `test://crowd`, ...) and writes their boxes into a real GridBox grid.

    Args:
        net: Input (width, height) of the pretended network, px.
        query: Misbehaviour for tests, e.g. `fail_after=100&slow_s=0.05`: fail from the 101st call on, take so long,
            `hang_after=100`: never return from the 101st, `open_s=30`: take so long to open, `wrong_golden=1`: answer
            every picture with a face that is not there.

    Raises:
        InputError: The query cannot be understood.
    """

    def __init__(self, net: Tuple[int, int] = (384, 240), query: str = "") -> None:
        options = _parse(query)
        self.contract = ModelContract("gridbox", net=net)
        self.pool: Optional[BufferPool] = None
        self.info = EngineInfo("scripted", "fp32", "scripted", "", detail={"options": query})
        self._fail_after = options.get("fail_after")
        self._hang_after = options.get("hang_after")
        self._slow_s = options.get("slow_s", 0.0)
        self._wrong = bool(options.get("wrong_golden", 0.0))
        self._calls = 0
        time.sleep(options.get("open_s", 0.0))
        self._columns, self._rows = int(net[0] / self.contract.stride[0]), int(net[1] / self.contract.stride[1])
        self._cov = np.zeros((1, self._rows, self._columns), np.float32)
        self._bbox = np.zeros((4, self._rows, self._columns), np.float32)
        self._sampled: Optional[Tuple[Tuple[int, ...], Array, Array]] = None

    def infer(self, picture: Image) -> Mapping[str, Array]:
        """`cov` (1, gh, gw) and `bbox` (4, gh, gw), float32, valid until the next call.

        Raises:
            EngineError: As `fail_after` asks.
        """
        self._calls += 1
        if self._fail_after is not None and self._calls > self._fail_after:
            raise EngineError(f"scripted engine: failed at call {self._calls}", "as fail_after asks")
        if self._hang_after is not None and self._calls > self._hang_after:
            threading.Event().wait()
        if self._slow_s:
            time.sleep(self._slow_s)
        self._cov[...] = 0.0
        self._bbox[...] = 0.0
        if self._wrong:
            self._write([(0, 0)], (0.0, 0.0, 48.0, 48.0))
            return {"cov": self._cov, "bbox": self._bbox}
        bright = self._bright(picture)
        if bright is not None:
            for cells in _components(bright):
                self._write(cells, self._extent(bright, cells))
        return {"cov": self._cov, "bbox": self._bbox}

    def close(self) -> None:
        """Nothing to free."""

    def _bright(self, picture: Image) -> Optional[Array]:
        """(gh * S, gw * S) bool samples that are part of a marker; None when there are none."""
        shape = picture.pixels.shape
        if self._sampled is None or self._sampled[0] != shape:
            self._sampled = (
                shape,
                _spread(shape[0], self._rows * _SAMPLES),
                _spread(shape[1], self._columns * _SAMPLES),
            )
        _, rows, columns = self._sampled
        samples = picture.levels.to_gray8(picture.pixels[rows][:, columns])
        if samples.ndim == 3:
            samples = samples[..., 0]
        threshold = max(_BRIGHT, float(samples.mean()) + _CONTRAST)
        bright = np.asarray(samples > threshold)
        return bright if bright.any() else None

    def _extent(self, bright: Array, cells: List[Cell]) -> Tuple[float, float, float, float]:
        """Left, top, right, bottom of a component's bright samples, network px."""
        rows, columns = zip(*cells)
        top, left = min(rows), min(columns)
        own = np.zeros((max(rows) - top + 1, max(columns) - left + 1), bool)
        for row, column in cells:
            own[row - top, column - left] = True
        y0, x0 = top * _SAMPLES, left * _SAMPLES
        block = bright[y0 : y0 + own.shape[0] * _SAMPLES, x0 : x0 + own.shape[1] * _SAMPLES]
        block = block & own.repeat(_SAMPLES, 0).repeat(_SAMPLES, 1)
        y, x = np.flatnonzero(block.any(1)), np.flatnonzero(block.any(0))
        step_x, step_y = (stride / _SAMPLES for stride in self.contract.stride)
        return (x0 + x[0]) * step_x, (y0 + y[0]) * step_y, (x0 + x[-1] + 1) * step_x, (y0 + y[-1] + 1) * step_y

    def _write(self, cells: List[Cell], box: Tuple[float, float, float, float]) -> None:
        """Coverage and distances of one face: the inverse of `core.gridbox.decode`."""
        contract = self.contract
        for row, column in cells:
            x = column * contract.stride[0] + contract.box_offset
            y = row * contract.stride[1] + contract.box_offset
            self._cov[0, row, column] = _COVERAGE
            self._bbox[:, row, column] = (x - box[0], y - box[1], box[2] - x, box[3] - y)
            self._bbox[:, row, column] /= contract.box_scale


def _components(bright: Array) -> List[List[Cell]]:
    """Cells that touch one another, one list per marker; specks of noise are left out."""
    rows, columns = (side // _SAMPLES for side in bright.shape)
    parts = bright.reshape(rows, _SAMPLES, columns, _SAMPLES).sum(axis=(1, 3)) / float(_SAMPLES**2)
    left: Set[Cell] = {(int(row), int(column)) for row, column in np.argwhere(parts >= _TOUCHED)}
    found = []
    while left:
        waiting, cells = [left.pop()], []
        while waiting:
            row, column = waiting.pop()
            cells.append((row, column))
            near = {(row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)} & left
            left -= near
            waiting += near
        if any(parts[cell] >= _SEEN for cell in cells):
            found.append(sorted(cells))
    return sorted(found)


def _spread(size: int, count: int) -> Array:
    """(count,) indices of the centres of `count` equal parts of `size` px."""
    return np.asarray(((np.arange(count) + 0.5) * size / count).astype(np.intp))


def _parse(query: str) -> Dict[str, float]:
    given = dict(parse_qsl(query, keep_blank_values=True))
    unknown = sorted(set(given) - set(_OPTIONS))
    if unknown:
        raise InputError(f"scripted engine: unknown option {', '.join(unknown)}", f"allowed: {', '.join(_OPTIONS)}")
    try:
        return {name: float(value) for name, value in given.items()}
    except ValueError as error:
        raise InputError(f"scripted engine: {query}: {error}", "expected numbers") from error
