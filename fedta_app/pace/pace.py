"""The pace of a federation: what its clients are told of their steps in a round."""

from typing import Any

from fedta_app.config import RunConfig
from fedta_app.pace.adacomm import AdaComm
from fedta_app.pace.noise_scale import NoiseScale
from fedta_app.pace.schedule import learning_rate, local_steps


class Pace:
    """Learning rate, local steps and batch size of each round, and how the last two adapt.

    Parameters
    ----------
    config : RunConfig
    sizes : list of int
        How many images each client has.

    Attributes
    ----------
    noise_scale : NoiseScale or None
        It has to watch the updates of every round.
    """

    def __init__(self, config: RunConfig, sizes: list[int]) -> None:
        self._config = config
        self._adacomm: AdaComm | None = None
        self.noise_scale: NoiseScale | None = None
        if config.adacomm_rounds:
            self._adacomm = AdaComm(
                config.local_steps, config.adacomm_rounds, config.adacomm_factor
            )
        if config.noise_scale_rounds:
            self.noise_scale = NoiseScale(
                config.batch_size, config.noise_scale_rounds, sizes, config.most_batch_size
            )

    def learning_rate(self, server_round: int) -> float:
        """Return the learning rate of a round; with `lr-batch-size`, for its own batch size."""
        return learning_rate(self._config, server_round, self.batch_size(server_round))

    def local_steps(self, server_round: int) -> int:
        """Return the local steps of a round, the next one where they adapt."""
        if self._adacomm is not None:
            return self._adacomm.steps
        return local_steps(self._config, server_round)

    def batch_size(self, server_round: int) -> int:
        """Return the batch size of a round, the next one where it adapts."""
        return self._config.batch_size if self.noise_scale is None else self.noise_scale.batch_size

    def after_round(self, server_round: int, loss: float | None) -> dict[str, int]:
        """Take the mean training loss of a round that ended, None if nobody trained.

        Returns
        -------
        dict
            What changes from the next round on, by key.
        """
        before = self._adapted()
        if self._adacomm is not None and loss is not None:
            self._adacomm.observe(loss)
        if self.noise_scale is not None:
            self.noise_scale.end_round(self.learning_rate(server_round))
        return {key: value for key, value in self._adapted().items() if value != before[key]}

    def _adapted(self) -> dict[str, int]:
        adapted = {}
        if self._adacomm is not None:
            adapted["local-steps"] = self._adacomm.steps
        if self.noise_scale is not None:
            adapted["batch-size"] = self.noise_scale.batch_size
        return adapted

    def state_dict(self) -> dict[str, Any]:
        """Return what the next rounds depend on; empty where nothing adapts."""
        parts = {"adacomm": self._adacomm, "noise-scale": self.noise_scale}
        return {name: part.state_dict() for name, part in parts.items() if part is not None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        if self._adacomm is not None:
            self._adacomm.load_state_dict(state["adacomm"])
        if self.noise_scale is not None:
            self.noise_scale.load_state_dict(state["noise-scale"])
