"""Side-by-side measurements, as ratios in one run; nothing here is asserted by a test."""
