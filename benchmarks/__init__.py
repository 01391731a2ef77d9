"""Side-by-side measurements, as ratios in one run; nothing here is asserted by a test."""

import time

STARTED = time.time()  # of this process, but for the start of Python
