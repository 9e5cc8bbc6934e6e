"""What commands have changed, kept over a restart; within what the settings allow."""

from dataclasses import dataclass, field, replace
from typing import Any, Dict, FrozenSet, Mapping, Optional

from edge_agent.core.protocol.commands import SWITCHES, CommandRules


@dataclass(frozen=True)
class Overrides:
    """Switches that are OFF, and a threshold. Only departures from the settings are kept.

    Attributes:
        threshold: Of the detector; None is the setting's own.
        off: Names of the switches that are off, by camera.
    """

    threshold: Optional[float] = None
    off: Mapping[str, FrozenSet[str]] = field(default_factory=dict)

    def is_on(self, camera: str, switch: str, rules: CommandRules) -> bool:
        """Whether a camera's switch is on: never when the settings have turned it off."""
        return switch not in self.off.get(camera, ()) and (switch != "crops" or rules.crops)

    def with_switch(self, camera: str, switch: str, on: bool) -> "Overrides":
        """With that switch changed."""
        names = self.off.get(camera, frozenset())
        return replace(self, off={**self.off, camera: names - {switch} if on else names | {switch}})

    def with_threshold(self, value: Optional[float]) -> "Overrides":
        """With that threshold, or the setting's own."""
        return replace(self, threshold=value)

    def bounded(self, rules: CommandRules) -> "Overrides":
        """Without a threshold that the settings do not allow any more."""
        low, high = rules.params.min_threshold, rules.params.max_threshold
        allowed = self.threshold is None or low <= self.threshold <= high
        return self if allowed else replace(self, threshold=None)

    def to_json(self) -> Dict[str, Any]:
        """As it is kept; cameras that have gone stay, so that they come back as they were."""
        return {"threshold": self.threshold, "off": {camera: sorted(names) for camera, names in self.off.items()}}

    @classmethod
    def from_json(cls, value: Any) -> "Overrides":
        """As `to_json` wrote it.

        Raises:
            ValueError: It is something else.
        """
        if not isinstance(value, dict) or not isinstance(value.get("off"), dict):
            raise ValueError("not what was written")
        threshold, off = value.get("threshold"), value["off"]
        if threshold is not None and (isinstance(threshold, bool) or not isinstance(threshold, (int, float))):
            raise ValueError("the threshold is no number")
        if not all(isinstance(names, list) and set(map(str, names)) <= set(SWITCHES) for names in off.values()):
            raise ValueError("names a switch that is not known")
        return cls(threshold, {str(camera): frozenset(names) for camera, names in off.items()})
