r"""Groups of clients whose data together look like those of all: the superclients of FedSeq.

Zaccone et al., "Speeding up Heterogeneous Federated Learning with Sequentially Trained
Superclients", ICPR 2022, arXiv 2201.12211, the greedy rule. A superclient begins with one client,
and takes, one at a time, the client with which its classes are closest to those of everybody: with
p the class proportions of its images together and q those of all clients, the smallest divergence
:math:`\sum_c p(c) \log (p(c) / q(c))`, where a class with p(c) = 0 adds 0.

The paper estimates a client's classes by a model that the client trains; here they are counted. It
begins with a random client; here with the first that is left, and of equal divergences the first
client counts, so that nothing is drawn.
"""

import numpy as np

from fedta_app.partition.allocation import FloatArray, IntArray

_DIGITS = 12  # of divergences: ties must not be decided by the rounding of a machine's logarithm


def group_clients(counts: IntArray, most: int) -> list[list[int]]:
    """Return superclients of `most` clients each, the last one of those that are left.

    Parameters
    ----------
    counts : int array, shape (K, C)
        Images of each client and class, as `fedta_app.partition.class_counts` returns them.
    most : int
        Clients in a superclient, at least 1.

    Returns
    -------
    list of list of int
        Every client is in exactly one.

    Examples
    --------
    Clients 0 and 1 hold one class, clients 2 and 3 the other:

    >>> group_clients(np.array([[4, 0], [4, 0], [0, 4], [0, 4]]), 2)
    [[0, 2], [1, 3]]
    """
    overall = counts.sum(axis=0) / counts.sum()
    left, groups = list(range(len(counts))), []
    while left:
        group = [left.pop(0)]
        while left and len(group) < most:
            together = counts[group].sum(axis=0) + counts[left]
            nearest = np.round(divergences(together, overall), _DIGITS).argmin()
            group.append(left.pop(int(nearest)))
        groups.append(sorted(group))
    return groups


def divergences(counts: IntArray, overall: FloatArray) -> FloatArray:
    """Return the Kullback-Leibler divergences (n,) of proportions from those of all.

    Parameters
    ----------
    counts : int array, shape (n, C)
    overall : float array, shape (C,)
        Positive where a count is.
    """
    own = counts / counts.sum(axis=1, keepdims=True)
    ratio = np.divide(own, overall, out=np.ones_like(own), where=own > 0)
    found: FloatArray = (own * np.log(ratio)).sum(axis=1)
    return found
