"""Long trials of what a run has to survive: each is a command that writes what it found as JSON.

    python -m benchmarks.endurance.soak            a thousand rounds: memory, time, what stays
    python -m benchmarks.endurance.kills           kill -9 at random moments
    python -m benchmarks.endurance.crashes         death at each single operation on a file
    python -m benchmarks.endurance.configurations  a thousand odd configurations
    python -m benchmarks.endurance.replies         a thousand broken or hostile replies
    python -m benchmarks.endurance.matrix          every fault of a reply, by phase and engine
    python -m benchmarks.endurance.checkpoints     300 damaged checkpoints
    python -m benchmarks.endurance.machines        nodes over TLS: bytes, kill -9 of a node

They take minutes to an hour, and exit with 1 when they found a fault. The tests hold the same
promises on few cases; what these commands found is in results/endurance.
"""
