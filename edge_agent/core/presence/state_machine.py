"""Three-state presence: yes, no, cannot see. One state machine per camera and per zone."""

from dataclasses import dataclass

from edge_agent.core.params import param
from edge_agent.core.types import Presence, Sight


@dataclass(frozen=True)
class PresenceParams:
    """How fast presence turns on and off."""

    delay_on_s: float = param(
        0.0,
        "Seconds a face must be present before presence turns ON; raise it against people passing by, 0 is one frame",
        ge=0,
        le=3600,
    )
    delay_off_s: float = param(
        2.0,
        "Seconds after a face was last seen before presence turns OFF; raise it when presence flaps, lower it for a "
        "faster OFF (a face that is lost for at most tracker.max_lost_s still counts as present)",
        ge=0,
        le=86400,
    )


class PresenceMachine:
    """Derives presence from observed frames.

    YES needs a frame with a face, NO a frame without one since sight was (re)gained; losing sight is UNKNOWN at once.
    `delay_off_s` counts from the last frame with a face, and applies to YES only; `delay_on_s` counts from the first,
    and until it ends UNKNOWN stays UNKNOWN.

    Args:
        params: May be replaced at any time.

    Attributes:
        state: Presence as of the last call.
    """

    def __init__(self, params: PresenceParams) -> None:
        self.params = params
        self.state = Presence.UNKNOWN
        self._can_see = False
        self._observed = False
        self._face = False
        self._face_since_t = 0.0
        self._face_t = 0.0

    def observe(self, face: bool, t: float) -> None:
        """A frame of time `t` shows a face, or none. Do not call it for a frame in a track's short gap."""
        if not self._can_see:
            return
        if face:
            if not self._face:
                self._face_since_t = t
            self._face_t = t
        self._face = face
        self._observed = True
        if face and t - self._face_since_t >= self.params.delay_on_s:
            self.state = Presence.YES
        self.tick(t)

    def tick(self, t: float) -> None:
        """Let `delay_off_s` expire at `t`; `delay_on_s` expires by a frame that still shows the face."""
        if not self._observed or self._face:
            return
        if self.state is not Presence.YES or t - self._face_t >= self.params.delay_off_s:
            self.state = Presence.NO

    def excuse(self, seconds: float) -> None:
        """Extend a running `delay_off_s`: for so long no frame could show a face."""
        if not self._face:
            self._face_t += seconds

    def set_sight(self, sight: Sight) -> None:
        """Set whether the camera can see."""
        if sight.can_see == self._can_see:
            return
        self._can_see = sight.can_see
        self.state = Presence.UNKNOWN
        self._observed = False
        self._face = False
