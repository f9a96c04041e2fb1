"""Distillation: a many-step guided teacher into a student of 1 to 4 steps."""
