"""Long trials of what a run has to survive: each is a command that writes what it found as JSON.

    python -m benchmarks.endurance.soak            a thousand rounds: memory, time, what stays
    python -m benchmarks.endurance.kills           kill -9 at random moments
    python -m benchmarks.endurance.configurations  a thousand odd configurations
    python -m benchmarks.endurance.replies         a thousand broken or hostile replies

They take minutes to an hour, and exit with 1 when they found a fault. The tests hold the same
promises on few cases; what these commands found is in results/endurance.
"""
