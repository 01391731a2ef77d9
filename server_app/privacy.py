"""What a run with noise says of privacy: what its epsilon covers, and what it does not."""

import secrets

from fedta_app.conditions import SCORED
from fedta_app.config import RunConfig
from fedta_app.training.datasets import of_nodes
from server_app.personal import has_own_models
from server_app.state import ServerState
from strategies.private import PrivateStrategy


def spent(state: ServerState, strategy: PrivateStrategy, rounds: int) -> float:
    """Return the epsilon of so many rounds of training, and let summary.json say what it is of."""
    config = state.config
    found = strategy.epsilon(rounds, config.dp_delta)
    state.notes["privacy"] = {
        "epsilon": found,
        "delta": config.dp_delta,
        "of": "one client",
        "rounds": rounds,
        "sampling": config.dp_sampling,
        "clients-expected": strategy.expected,
        "not-covered": uncovered(config),
    }
    return found


def seed_of_draws(config: RunConfig, *, deployed: bool) -> int:
    """Return the seed of a training's sampling and noise.

    Nodes of a deployment, and whoever has the model, know the seed of the run: noise that follows
    from it could be taken away. There it is another one in each session, which only the server has.
    """
    return secrets.randbits(63) if deployed and config.dp_noise else config.seed


def uncovered(config: RunConfig) -> list[str]:
    """Return what is computed from clients' data, or published of them, without noise."""
    calibrated = SCORED.holds(config) and config.mask_scope != "server"
    published = {
        "the sums of the ridge head": config.head == "ridge",
        "the training of the probe head": config.head == "probe",
        "the calibration of the mask": calibrated,
        "the images that clients share": config.shared_fraction > 0,
        "the accuracy of clients' own models": has_own_models(config),
        "the evaluation (train_loss in metrics.csv)": True,
        "the class counts in partition.png and summary.json": not of_nodes(config),
        "the numbers of images in summary.json": of_nodes(config),
        "who took part (numbers in metrics.csv, rejected clients in summary.json)": True,
    }
    return [what for what, found in published.items() if found]


def privacy_warnings(config: RunConfig, *, deployed: bool) -> list[str]:
    """Return the sentences that a run with noise, or with secure aggregation, begins with."""
    if config.secure_aggregation:
        toy = "its keys come from the seed, and it protects nobody"
        return [f"secure aggregation is simulated: {toy} (docs/privacy.md)"]
    if not config.dp_noise:
        return []
    covered = "epsilon covers the updates of training; it does not cover"
    known = "the noise and the sampling are drawn from the seed, so that the run can be repeated"
    said = [f"{covered} {', '.join(uncovered(config))} (docs/privacy.md)"]
    return said if deployed else [*said, f"{known}: who knows the seed can take the noise away"]


def announce(config: RunConfig, strategy: PrivateStrategy) -> None:
    """Print the epsilon of the whole training.

    Raises
    ------
    ConfigError
        When it cannot be computed here.
    """
    rounds, delta = config.num_server_rounds, config.dp_delta
    found = strategy.epsilon(rounds, delta)
    print(f"epsilon = {found:.3g} at delta = {delta:g} after {rounds} rounds", flush=True)
