r"""AdaComm: fewer local steps as the loss falls.

Wang and Joshi, "Adaptive Communication Strategies to Achieve the Best Error-Runtime Trade-off in
Local-Update SGD", MLSys 2019, arXiv 1810.08313, section 4. Long local training saves
communication early, and short local training ends at a lower loss. Every T rounds

.. math::

    J \leftarrow J' \text{ if } J' < J \text{, else } \lceil \gamma J \rceil, \qquad
    J' = \Big\lceil \sqrt{F_l / F_0}\; J_0 \Big\rceil,

where :math:`J_0` is `local-steps`, :math:`F_0` the clients' mean training loss in the first round,
and :math:`F_l` that of the last T rounds. The paper measures the loss at one point, and in seconds;
here other clients train in each round, and the mean over T rounds is less noisy.
"""

import math
from typing import Any


class AdaComm:
    """The local steps J of the next round, from the losses of those before.

    Parameters
    ----------
    steps : int
        J of the first rounds, at least 1.
    every : int
        T, the rounds after which J is set anew.
    factor : float
        Gamma, from above 0 to 1: what J is multiplied by where the loss does not lower it.

    Examples
    --------
    >>> rule = AdaComm(16, every=2, factor=0.5)
    >>> for loss in (4.0, 2.0, 1.0, 1.0):
    ...     rule.observe(loss)
    >>> rule.steps  # ceil(16 * sqrt(3 / 4)) = 14 after two rounds, now ceil(16 * sqrt(1 / 4))
    8
    """

    def __init__(self, steps: int, every: int, factor: float) -> None:
        self._most, self._every, self._factor = steps, every, factor
        self.steps = steps
        self._first: float | None = None
        self._losses: list[float] = []

    def observe(self, loss: float) -> None:
        """Take the mean training loss of the next round."""
        if self._first is None:
            self._first = loss
        self._losses.append(loss)
        if len(self._losses) < self._every:
            return
        mean = math.fsum(self._losses) / self._every
        self._losses = []
        # A loss of zero, or below it as with a rule of its own, leaves no ratio to go by.
        ratio = min(1.0, max(0.0, mean) / self._first) if self._first > 0 else 1.0
        wanted = max(1, math.ceil(math.sqrt(ratio) * self._most))
        self.steps = wanted if wanted < self.steps else math.ceil(self._factor * self.steps)

    def state_dict(self) -> dict[str, Any]:
        """Return the steps, and the losses that count for the next ones."""
        return {"steps": self.steps, "first": self._first, "losses": list(self._losses)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        self.steps = int(state["steps"])
        self._first = None if state["first"] is None else float(state["first"])
        self._losses = [float(loss) for loss in state["losses"]]
