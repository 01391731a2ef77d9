"""A run on Flower's simulation engine, whatever else is set up for Flower or Ray here."""

from experiments.running.flower.engine import is_chatter, run_app, run_on_flower
from experiments.running.flower.superlink import superlink_ahead

__all__ = ["is_chatter", "run_app", "run_on_flower", "superlink_ahead"]
