"""Tables, ratios and verdicts from the turns of a run. Pure."""

from typing import Any, Dict, List, NamedTuple, Optional, Sequence

from scripts.lib.bench import arms
from scripts.lib.bench.scores import Score, Work, judge, median, quantile, work
from scripts.lib.bench.turn import Turn

MB = 1e6


class Result(NamedTuple):
    """One arm over all rounds."""

    name: str
    score: Score
    work: Work
    first_event_s: float
    peak_rss_mb: float
    camera_dropped: int
    frames: int
    infer_ms: Sequence[float]
    rounds_ms: Sequence[Sequence[float]]

    @property
    def p50_ms(self) -> float:
        return median(self.score.latencies_ms)

    @property
    def worst_ms(self) -> float:
        return max(self.score.latencies_ms, default=float("nan"))


def results(turns: Sequence[Turn]) -> Dict[str, Result]:
    """By arm. The start of the first round is left out: it reads files from disk."""
    found: Dict[str, Result] = {}
    for name in dict.fromkeys(turn.arm for turn in turns):
        own = [turn for turn in turns if turn.arm == name]
        scores = [judge(turn.onsets, turn.events) for turn in own]
        starts = [turn.first_event_s for turn in own if turn.first_event_s is not None]
        found[name] = Result(
            name,
            Score(
                tuple(ms for score in scores for ms in score.latencies_ms),
                sum(score.missed for score in scores),
                sum(score.stale for score in scores),
            ),
            work([turn.samples for turn in own]),
            median(starts[1:] or starts),
            max(turn.peak_rss_bytes for turn in own) / MB,
            sum(turn.camera_dropped for turn in own),
            sum(turn.frames for turn in own),
            [ms for turn in own for ms in turn.infer_ms],
            [score.latencies_ms for score in scores],
        )
    return found


class Line(NamedTuple):
    """One promise: `value` of at most `limit`; a value of None was not measured, for the reason in `why`."""

    promise: str
    value: Optional[float]
    limit: float
    why: str = ""

    @property
    def verdict(self) -> str:
        if self.value is None or self.value != self.value:
            return "not measured"
        return "met" if self.value <= self.limit else "MISSED"


def lines(found: Dict[str, Result], fps: float) -> List[Line]:
    """Issue 6's ratios 1 to 6, as far as whole programs show them."""
    get = found.get
    ours, int8, fp32, alone = get(arms.OURS), get(arms.SCRIPT), get(arms.SCRIPT_FP32), get(arms.INFER)
    two, lean, eight, over = get(arms.OURS_2T), get(arms.LEAN), get(arms.EIGHT), get(arms.OVERLOAD)
    idle, awake, woken = get(arms.IDLE), get(arms.IDLE_FULL), get(arms.IDLE_VISITS)
    net = {name: net_cpu_ms(found, name) for name in found}
    own = net.get(arms.OURS)

    def share(first: Optional[float], second: Optional[float]) -> Optional[float]:
        return first / second if first is not None and second else None

    def of(result: Optional[Result], figure: str) -> Optional[float]:
        return None if result is None else float(getattr(result, figure))

    network = alone.work.cpu_per_frame_ms if alone else None
    keeps_up = ours is not None and ours.work.processed_fps >= 0.95 * fps
    late = quantile(ours.score.latencies_ms, 0.99) if ours and keeps_up else None
    bound = 2 * quantile(alone.infer_ms, 0.99) + 10 if alone else None
    return [
        Line("1 onset p50, agent int8 / script fp32", share(of(ours, "p50_ms"), of(fp32, "p50_ms")), 1 / 8),
        Line("1 onset p50, agent int8 / script int8", share(of(ours, "p50_ms"), of(int8, "p50_ms")), 1.2),
        Line("1 worst onset, agent int8 / script int8", share(of(ours, "worst_ms"), of(int8, "worst_ms")), 1 / 4),
        Line("1 CPU per processed frame, agent int8 / script fp32", share(own, net.get(arms.SCRIPT_FP32)), 0.5),
        Line("1 CPU per processed frame, agent int8 / script int8", share(own, net.get(arms.SCRIPT)), 0.7),
        Line("2 agent CPU outside inference / inference, 1 face", share(_less(own, network), network), 0.08,
             "whole process: capture, MQTT, disk and health once a second included"),
        Line("3 CPU a second, nobody there, idle rate / every frame", share(_a_second(idle), _a_second(awake)), 0.25,
             "decode included"),
        Line("3 onsets missed by an agent that idles between them", float(woken.score.missed) if woken else None, 0),
        Line("4 peak RSS with OpenCV, MB", of(ours, "peak_rss_mb"), 130, _least(get(arms.LIBRARIES))),
        Line("4 peak RSS without OpenCV, MB", of(lean, "peak_rss_mb"), 95, _least(get(arms.LIBRARIES_LEAN))),
        Line("4 peak RSS, 8 cameras / 1", share(of(eight, "peak_rss_mb"), of(ours, "peak_rss_mb")), 1.1),
        Line("4 start to first event, s", of(ours, "first_event_s"), 0.5),
        Line("5 onset p99 / (2 x network p99 + 10 ms)", share(late, bound), 1.0,
             "" if keeps_up else f"did not keep up with {fps:g} fps"),
        Line("5 under overload, last half's median / first half's", _drift(over), 1.5),
        Line("6 CPU per frame, 2 threads / 1", share(net.get(two.name) if two else None, own), 1.2),
    ]  # fmt: skip


def net_cpu_ms(found: Dict[str, Result], name: str) -> Optional[float]:
    """CPU per processed frame without the decoding of all that was read; None where that is not known."""
    if name in arms.PARTS:
        return None
    by = arms.DECODE_SCRIPT if name.startswith("script") else arms.DECODE_OURS
    result, decode = found[name], found.get(by)
    if decode is None or not result.work.processed:
        return None
    return result.work.cpu_per_frame_ms - decode.work.cpu_per_frame_ms * result.work.read / result.work.processed


def _a_second(result: Optional[Result]) -> Optional[float]:
    return result.work.cpu_s / result.work.seconds if result and result.work.seconds else None


def _least(libraries: Optional[Result]) -> str:
    return f"the libraries and the network alone: {libraries.peak_rss_mb:.0f}" if libraries else ""


def _less(whole: Optional[float], part: Optional[float]) -> Optional[float]:
    return None if whole is None or part is None else whole - part


def _drift(result: Optional[Result]) -> Optional[float]:
    """How much later events are in the second half of a round than in its first; the median round."""
    halves = (
        [(late[: len(late) // 2], late[len(late) // 2 :]) for late in result.rounds_ms if len(late) > 3]
        if result
        else []
    )
    return median([median(second) / median(first) for first, second in halves]) if halves else None


def page(whole: Dict[str, Any]) -> List[str]:
    """All of a run as Markdown, from its JSON: when and where, a row per arm, a row per promise, what failed."""
    about = whole["about"]
    heading = [f"{about['date']}, {about['machine']}, load average {about['load_before'][0]:.1f} before and "
            f"{about['load_after'][0]:.1f} after. `{about['command']}`"]  # fmt: skip
    failed = ["", *whole["failed"].values()] if whole["failed"] else []
    return [*heading, "", *_arms(whole["arms"]), "", *verdicts([_line(one) for one in whole["promises"]]), *failed]


_HEADS = ("arm", "onset p50, ms", "p90", "worst", "onsets", "missed", "too late", "CPU, ms/frame", "of it decode",
          "frames/s", "not inferred", "peak MB", "first event, s")  # fmt: skip


def _arms(found: Dict[str, Any]) -> List[str]:
    """One row per arm of `as_json`'s."""
    rows = [_HEADS]
    for name, one in found.items():
        late, net, whole = one["latencies_ms"], one["cpu_per_frame_without_decode_ms"], one["cpu_per_frame_ms"]
        rows.append(
            (
                name,
                _number(median(late)),
                _number(quantile(late, 0.9)),
                _number(max(late, default=None)),
                str(len(late) + one["missed"] or "-"),
                str(one["missed"]),
                str(one["stale"]),
                _number(whole, 1),
                _number(_less(whole, net), 1),
                _number(one["processed"] / one["seconds"] if one["processed"] else None),
                str(max(0, one["read"] - one["processed"])),  # what was read before the window may be processed in it
                _number(one["peak_rss_mb"], 0),
                _number(one["first_event_s"], 2),
            )
        )
    return markdown(rows)


def _line(values: Dict[str, Any]) -> Line:
    return Line(*(values[field] for field in Line._fields))


def verdicts(judged: Sequence[Line]) -> List[str]:
    """Markdown, one row per promise that was measured, then the names of the others."""
    rows = [("promise", "measured", "at most", "verdict", "note")]
    for line in judged:
        if line.verdict != "not measured":
            verdict = f"**{line.verdict}**" if line.verdict == "MISSED" else line.verdict
            value = _number(line.value, 0 if line.limit > 10 else 3)
            rows.append((line.promise, value, f"{line.limit:.3g}", verdict, line.why))
    left = [
        f"{line.promise}{f' ({line.why})' if line.why else ''}" for line in judged if line.verdict == "not measured"
    ]
    return [*markdown(rows), *(["", f"Not measured: {'; '.join(left)}."] if left else [])]


def markdown(rows: Sequence[Sequence[str]]) -> List[str]:
    """A table; the first row is its head."""
    made = [f"| {' | '.join(row)} |" for row in rows]
    return [made[0], "|" + "---|" * len(rows[0]), *made[1:]]


def as_json(found: Dict[str, Result], judged: Sequence[Line]) -> Dict[str, Any]:
    """Everything that the tables show, and each latency."""
    return {
        "arms": {
            name: {
                "latencies_ms": [round(ms, 2) for ms in one.score.latencies_ms],
                "rounds_ms": [[round(ms, 2) for ms in late] for late in one.rounds_ms],
                "missed": one.score.missed,
                "stale": one.score.stale,
                "cpu_per_frame_ms": _rounded(one.work.cpu_per_frame_ms),
                "cpu_per_frame_without_decode_ms": _rounded(net_cpu_ms(found, name)),
                "processed": one.work.processed,
                "read": one.work.read,
                "seconds": _rounded(one.work.seconds),
                "camera_frames": one.frames,
                "camera_dropped": one.camera_dropped,
                "peak_rss_mb": _rounded(one.peak_rss_mb),
                "first_event_s": _rounded(one.first_event_s),
                "network_p50_ms": _rounded(median(one.infer_ms)),
                "network_p99_ms": _rounded(quantile(one.infer_ms, 0.99)),
            }
            for name, one in found.items()
        },
        "promises": [{**line._asdict(), "value": _rounded(line.value), "verdict": line.verdict} for line in judged],
    }


def _number(value: Optional[float], digits: int = 1) -> str:
    return "-" if value is None or value != value else f"{value:.{digits}f}"


def _rounded(value: Optional[float]) -> Optional[float]:
    return None if value is None or value != value else round(value, 3)
