"""The guide: where the edit is in every frame, and what other frames show behind it."""
