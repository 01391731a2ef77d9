"""How far SGD with momentum goes in a number of steps, in steps without momentum."""


def norm_of_steps(steps: int, momentum: float) -> float:
    r"""Return :math:`\lVert a \rVert_1`, by which an update exceeds one step of the mean gradient.

    The sum over j = 1..steps of (1 - m^j) / (1 - m), for SGD whose momentum starts at zero: Wang et
    al., "Tackling the Objective Inconsistency Problem in Heterogeneous Federated Optimization",
    NeurIPS 2020, arXiv 2007.07481.

    Examples
    --------
    >>> norm_of_steps(4, momentum=0.0)
    4.0
    >>> norm_of_steps(2, momentum=0.5)  # 1 + (1 + 0.5)
    2.5
    """
    return sum((1 - momentum**j) / (1 - momentum) for j in range(1, steps + 1))
