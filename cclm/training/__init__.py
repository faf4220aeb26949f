"""The Lightning system around model, objectives and streams."""
