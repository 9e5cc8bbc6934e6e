"""The composition root: the only place that constructs adapters. `agent` wires; the other two are its shares."""
