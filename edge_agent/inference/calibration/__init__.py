"""INT8 calibration on the user's own frames."""
