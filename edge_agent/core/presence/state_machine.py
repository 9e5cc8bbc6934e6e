"""Is a face there: yes, no, or cannot see. One machine per camera, and one per zone."""

from dataclasses import dataclass

from edge_agent.core.params import param
from edge_agent.core.types import Presence, Sight


@dataclass(frozen=True)
class PresenceParams:
    """How fast presence turns on and off."""

    delay_on_s: float = param(
        0.0,
        "Seconds a face must be there before presence turns ON; raise it against people passing by, 0 is one frame",
        ge=0,
        le=3600,
    )
    delay_off_s: float = param(
        2.0,
        "Seconds after a face was last seen before presence turns OFF; raise it when presence flaps, lower it for a "
        "faster OFF (a face lost for a moment, tracker.max_lost_s, still counts as there)",
        ge=0,
        le=86400,
    )


class PresenceMachine:
    """Turns what frames show into the three-state answer.

    It says YES only of a frame that shows a face, NO only after one has shown none since sight was (re)gained, and
    neither while it cannot see. Losing sight is UNKNOWN at once. `delay_off_s` counts from the last frame that showed a
    face, and applies to YES only; `delay_on_s` counts from the first, and until it ends UNKNOWN stays UNKNOWN.

    Args:
        params: May be replaced at any time.

    Attributes:
        state: The answer as of the last call.
    """

    def __init__(self, params: PresenceParams) -> None:
        self.params = params
        self.state = Presence.UNKNOWN
        self._can_see = False
        self._looked = False
        self._face = False
        self._face_since_t = 0.0
        self._face_t = 0.0

    def observe(self, face: bool, t: float) -> None:
        """A frame of time `t` shows a face, or none. A frame that leaves it open (a short gap) is not observed."""
        if not self._can_see:
            return
        if face:
            if not self._face:
                self._face_since_t = t
            self._face_t = t
        self._face = face
        self._looked = True
        if face and t - self._face_since_t >= self.params.delay_on_s:
            self.state = Presence.YES
        self.tick(t)

    def tick(self, t: float) -> None:
        """Let `delay_off_s` end when it is over at `t`; `delay_on_s` ends by a frame that still shows the face."""
        if not self._looked or self._face:
            return
        if self.state is not Presence.YES or t - self._face_t >= self.params.delay_off_s:
            self.state = Presence.NO

    def set_sight(self, sight: Sight) -> None:
        """The camera gained or lost sight."""
        if sight.can_see == self._can_see:
            return
        self._can_see = sight.can_see
        self.state = Presence.UNKNOWN
        self._looked = False
        self._face = False
