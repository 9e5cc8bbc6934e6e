"""An engine without a network, for tests and soak runs: it finds bright markers and returns FaceDetectIR's outputs."""

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
_BRIGHT = 170.0  # minimum gray level of a marker
_CONTRAST = 60.0  # minimum difference from the image's mean
_SEED = 0.35  # minimum bright share of one cell of a marker
_MEMBER = 0.1  # minimum bright share of each of its cells
_COVERAGE = 0.95
_OPTIONS = ("fail_after", "hang_after", "open_s", "slow_s", "wrong_golden")

Cell = Tuple[int, int]


class ScriptedEngine:
    """Finds bright markers (`test://one`, `test://crowd`, ...) and writes their boxes into a real GridBox grid.

    Args:
        net: Input (width, height) of the imitated network, px.
        query: Faults for tests, e.g. `fail_after=100&slow_s=0.05`. `fail_after`: calls before every call fails;
            `hang_after`: calls before one never returns; `slow_s`: duration of a call; `open_s`: duration of opening;
            `wrong_golden=1`: return a face that is not there for every image.

    Raises:
        InputError: The query is invalid.
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

    def infer(self, image: Image) -> Mapping[str, Array]:
        """`cov` (1, gh, gw) and `bbox` (4, gh, gw), float32, valid until the next call.

        Raises:
            EngineError: After `fail_after` calls.
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
        bright = self._bright(image)
        if bright is not None:
            for cells in _components(bright):
                self._write(cells, self._extent(bright, cells))
        return {"cov": self._cov, "bbox": self._bbox}

    def close(self) -> None:
        """Nothing to free."""

    def _bright(self, image: Image) -> Optional[Array]:
        """(gh * S, gw * S) bool samples that belong to a marker; None when there are none."""
        shape = image.pixels.shape
        if self._sampled is None or self._sampled[0] != shape:
            self._sampled = (
                shape,
                _spread(shape[0], self._rows * _SAMPLES),
                _spread(shape[1], self._columns * _SAMPLES),
            )
        _, rows, columns = self._sampled
        samples = image.levels.to_gray8(image.pixels[rows][:, columns])
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
        """Write coverage and distances of one face: the inverse of `core.detection.gridbox.decode`."""
        contract = self.contract
        for row, column in cells:
            x = column * contract.stride[0] + contract.box_offset
            y = row * contract.stride[1] + contract.box_offset
            self._cov[0, row, column] = _COVERAGE
            self._bbox[:, row, column] = (x - box[0], y - box[1], box[2] - x, box[3] - y)
            self._bbox[:, row, column] /= contract.box_scale


def _components(bright: Array) -> List[List[Cell]]:
    """Adjacent cells, one list per marker; noise is omitted."""
    rows, columns = (side // _SAMPLES for side in bright.shape)
    parts = bright.reshape(rows, _SAMPLES, columns, _SAMPLES).sum(axis=(1, 3)) / float(_SAMPLES**2)
    left: Set[Cell] = {(int(row), int(column)) for row, column in np.argwhere(parts >= _MEMBER)}
    found = []
    while left:
        pending, cells = [left.pop()], []
        while pending:
            row, column = pending.pop()
            cells.append((row, column))
            near = {(row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)} & left
            left -= near
            pending += near
        if any(parts[cell] >= _SEED for cell in cells):
            found.append(sorted(cells))
    return sorted(found)


def _spread(size: int, count: int) -> Array:
    """(count,) indices of the centres of `count` equal parts of `size` px."""
    return np.asarray(((np.arange(count) + 0.5) * size / count).astype(np.intp))


def _parse(query: str) -> Dict[str, float]:
    options = dict(parse_qsl(query, keep_blank_values=True))
    unknown = sorted(set(options) - set(_OPTIONS))
    if unknown:
        raise InputError(f"scripted engine: unknown option {', '.join(unknown)}", f"allowed: {', '.join(_OPTIONS)}")
    try:
        return {name: float(value) for name, value in options.items()}
    except ValueError as error:
        raise InputError(f"scripted engine: {query}: {error}", "expected numbers") from error
