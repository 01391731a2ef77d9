"""Local training, evaluation and scoring on one device."""
