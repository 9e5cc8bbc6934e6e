"""Changes made by commands, which persist over restarts within the limits of the settings."""

from dataclasses import dataclass, field, replace
from typing import Any, Dict, FrozenSet, Mapping, Optional

from edge_agent.core.protocol.commands import SWITCHES, CommandRules


@dataclass(frozen=True)
class Overrides:
    """Switches that are off, and a threshold: only differences from the settings.

    Attributes:
        threshold: Detection threshold; None for the setting.
        off: Switches that are off, by camera.
    """

    threshold: Optional[float] = None
    off: Mapping[str, FrozenSet[str]] = field(default_factory=dict)

    def is_on(self, camera: str, switch: str, rules: CommandRules) -> bool:
        """Whether a camera's switch is on; the settings can turn it off permanently."""
        return switch not in self.off.get(camera, ()) and (switch != "crops" or rules.crops)

    def with_switch(self, camera: str, switch: str, on: bool) -> "Overrides":
        names = self.off.get(camera, frozenset())
        return replace(self, off={**self.off, camera: names - {switch} if on else names | {switch}})

    def with_threshold(self, value: Optional[float]) -> "Overrides":
        """A copy with another threshold; None for the setting."""
        return replace(self, threshold=value)

    def bounded(self, rules: CommandRules) -> "Overrides":
        """A copy without a threshold that the settings do not allow."""
        low, high = rules.params.min_threshold, rules.params.max_threshold
        allowed = self.threshold is None or low <= self.threshold <= high
        return self if allowed else replace(self, threshold=None)

    def to_json(self) -> Dict[str, Any]:
        """The stored form; it includes removed cameras, so that they keep their switches when they return."""
        return {"threshold": self.threshold, "off": {camera: sorted(names) for camera, names in self.off.items()}}

    @classmethod
    def from_json(cls, value: Any) -> "Overrides":
        """Parse the form of `to_json`.

        Raises:
            ValueError: The value has another form.
        """
        if not isinstance(value, dict) or not isinstance(value.get("off"), dict):
            raise ValueError("not an object with threshold and off")
        threshold, off = value.get("threshold"), value["off"]
        if threshold is not None and (isinstance(threshold, bool) or not isinstance(threshold, (int, float))):
            raise ValueError("threshold: not a number")
        if not all(isinstance(names, list) and set(map(str, names)) <= set(SWITCHES) for names in off.values()):
            raise ValueError("off: an unknown switch")
        return cls(threshold, {str(camera): frozenset(names) for camera, names in off.items()})
