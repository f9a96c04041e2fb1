"""Rewards: differentiable scores of the frames that a student makes."""
