"""The engine and the pipelines on it: the detector is shared by all cameras."""

import numpy as np

from edge_agent.app.factories import command_rules_of
from edge_agent.app.inference import Inference
from edge_agent.config.settings import load_settings
from edge_agent.core.frame import Frame
from edge_agent.core.protocol.overrides import Overrides
from edge_agent.core.types import Sight
from edge_agent.runtime.command_queue import CommandQueue
from edge_agent.runtime.pool_proxy import PoolProxy
from tests.fakes.clock import FakeClock

ENVIRONMENT = {
    "EDGE_AGENT_MODEL__BACKEND": "scripted",
    "EDGE_AGENT_MODEL__MODEL": "scripted",
    "EDGE_AGENT_IDLE__FPS": "0.1",
    "EDGE_AGENT_IDLE__AFTER_S": "0",
    "EDGE_AGENT_CAMERAS__A__URI": "test://",
    "EDGE_AGENT_CAMERAS__B__URI": "test://",
}


def test_a_threshold_applies_to_all_cameras_and_ends_their_idling(tmp_path):
    settings, clock = load_settings(ENVIRONMENT), FakeClock()
    pool = PoolProxy(CommandQueue(lambda result: None, lambda value: None))
    inference = Inference(settings, {"HOME": str(tmp_path)}, clock, pool, lambda line: None)
    pipelines = inference.open(Overrides(), command_rules_of(settings))
    room = np.full((240, 320), 60, np.uint8)

    def idle(pipeline) -> bool:
        moment = clock.advance(0.1)
        frame = Frame(room, 1, moment.t)
        return pipeline.step(frame, pipeline.frame_info(frame, moment)).idle

    for pipeline in pipelines.values():
        pipeline.set_sight(Sight.OK, clock())
        assert [idle(pipeline) for _ in range(3)][-1]
    before = inference.threshold
    inference.set_threshold(0.7)
    assert inference.threshold == 0.7
    assert not any(idle(pipeline) for pipeline in pipelines.values())
    inference.set_threshold(None)
    assert inference.threshold == before
    inference.close()
