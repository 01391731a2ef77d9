"""Number of samples of each class and client, when every client holds exactly Nc classes.

The result is an integer table of shape (K, C), clients by classes. Its column sums are the class
sizes, its row sums (client sizes) differ by at most one, and each row has exactly Nc positive
entries. It is found in three steps:

1. The number of holders of each class is proportional to its size (Webster's method), within the
   bounds that every solution satisfies; the total is K * Nc.
2. The holders are assigned by the algorithm of Havel and Hakimi (possible by the theorem of Gale
   and Ryser), then randomised by trades between pairs of clients ("curveball", Strona et al. 2014).
3. Each class is split equally among its holders. Then samples are moved along augmenting paths,
   client - class - client (Ford and Fulkerson 1956), until the client sizes fit; every share stays
   at least one.

Step 3 fails only if the holders of step 2 admit no solution; then other holders are tried, up to
`ATTEMPTS` times. It never fails if the classes are equally large and K * Nc is a multiple of their
number: shares of N / (K * Nc) satisfy all sums, and so do integers, because flows are integral.

Where clients shall be unequal, each class is split among its holders in proportion to the clients'
weights, at least one sample each, and step 3 is left out: the size of a client follows.
"""

import heapq

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

ATTEMPTS = 50
TRADES = 10  # how often all clients are paired for trades


def split_in_proportion(number: int, weights: FloatArray) -> IntArray:
    """Return shares (K,) of `number`, at least 1 each, otherwise in proportion to weights (K,).

    Proportions are rounded by the method of largest remainders. What raises small shares to 1 is
    taken from the largest ones. `number` is at least K.

    Examples
    --------
    >>> split_in_proportion(10, np.array([1.0, 2.0, 2.0])).tolist()
    [2, 4, 4]
    >>> split_in_proportion(10, np.array([1.0, 1.0, 1000.0])).tolist()
    [1, 1, 8]
    """
    quotas = number * (weights / weights.sum())
    shares: IntArray = np.floor(quotas).astype(np.int64)
    rest = number - int(shares.sum())
    shares[np.argsort(shares - quotas, kind="stable")[:rest]] += 1
    np.maximum(shares, 1, out=shares)
    for _ in range(int(shares.sum()) - number):
        shares[shares.argmax()] -= 1
    return shares


def allocate_shares(
    counts: IntArray,
    num_clients: int,
    classes_each: int,
    rng: np.random.Generator,
    weights: FloatArray | None = None,
) -> IntArray | None:
    """Return the number of samples of each client and class, or None if none was found.

    Parameters
    ----------
    counts : int array, shape (C,)
        Samples of each class, all positive.
    num_clients : int
        K, at most the number of samples N.
    classes_each : int
        Nc, at most C and at most N // K, with K * Nc >= C.
    rng : numpy.random.Generator
        Source of every random choice.
    weights : float array, shape (K,), optional
        By which the holders of a class share it. By default all clients are equally large.

    Returns
    -------
    int64 array, shape (K, C), or None
        Column sums `counts`, `classes_each` positive shares per row, and without weights row sums
        N // K or one more.
    """
    smallest, larger = divmod(int(counts.sum()), num_clients)
    largest = smallest + (larger > 0)
    if weights is not None:
        smallest, largest = 1, int(counts.sum())
    for _ in range(ATTEMPTS):
        num_holders = _count_holders(counts, num_clients, classes_each, smallest, largest, rng)
        if num_holders is None:
            return None
        holds = _choose_holders(num_holders, num_clients, classes_each, rng)
        _trade(holds, rng)
        if weights is not None:
            return _split_by_weight(holds, counts, weights)
        shares = _split_classes(holds, counts, rng)
        if _level_clients(shares, smallest, largest):
            return shares
    return None


def _count_holders(
    counts: IntArray,
    num_clients: int,
    classes_each: int,
    smallest: int,
    largest: int,
    rng: np.random.Generator,
) -> IntArray | None:
    """Return the number of holders of each class, or None if the bounds leave no solution."""
    fewest = smallest if classes_each == 1 else 1
    most = largest - classes_each + 1  # the client's other classes have at least one sample each
    num_holders = -(-counts // most)
    limits = np.minimum(counts // fewest, num_clients)
    missing = num_clients * classes_each - int(num_holders.sum())
    if (num_holders > limits).any() or not 0 <= missing <= int((limits - num_holders).sum()):
        return None
    ties = rng.permutation(len(counts))
    queue = [
        (-n / (2 * m + 1), t, c)
        for c, (n, m, t) in enumerate(zip(counts, num_holders, ties, strict=True))
    ]
    heapq.heapify(queue)
    while missing > 0:
        _, tie, c = heapq.heappop(queue)
        if num_holders[c] < limits[c]:
            num_holders[c] += 1
            missing -= 1
            heapq.heappush(queue, (-counts[c] / (2 * num_holders[c] + 1), tie, c))
    return num_holders


def _choose_holders(
    num_holders: IntArray, num_clients: int, classes_each: int, rng: np.random.Generator
) -> BoolArray:
    """Return a table (K, C), True if the client holds the class.

    Each class goes to the clients that still lack the most classes (Havel and Hakimi).
    """
    holds = np.zeros((num_clients, len(num_holders)), dtype=bool)
    lacking = np.full(num_clients, classes_each)
    for c, number in enumerate(num_holders):
        rows = np.lexsort((rng.random(num_clients), -lacking))[:number]
        holds[rows, c] = True
        lacking[rows] -= 1
    return holds


def _trade(holds: BoolArray, rng: np.random.Generator) -> None:
    """Randomise the table in place: pairs of clients trade classes that only one of them holds."""
    half = len(holds) // 2
    for _ in range(TRADES):
        order = rng.permutation(len(holds))
        left, right = order[:half], order[half : 2 * half]
        both, differ = holds[left] & holds[right], holds[left] ^ holds[right]
        quota = (holds[left] & differ).sum(axis=1, keepdims=True)
        keys = np.where(differ, rng.random(differ.shape), 2.0)
        takes = keys.argsort(axis=1).argsort(axis=1) < quota
        holds[left] = both | takes
        holds[right] = both | (differ & ~takes)


def _split_classes(holds: BoolArray, counts: IntArray, rng: np.random.Generator) -> IntArray:
    """Return the table of shares when each class is split equally, the remainder at random."""
    shares = np.zeros(holds.shape, dtype=np.int64)
    for c, count in enumerate(counts):
        rows = rng.permutation(np.flatnonzero(holds[:, c]))
        shares[rows, c] = count // len(rows)
        shares[rows[: count % len(rows)], c] += 1
    return shares


def _split_by_weight(holds: BoolArray, counts: IntArray, weights: FloatArray) -> IntArray:
    """Return the table of shares when each class is split in proportion to its holders' weights."""
    shares = np.zeros(holds.shape, dtype=np.int64)
    for c, count in enumerate(counts):
        rows = np.flatnonzero(holds[:, c])
        shares[rows, c] = split_in_proportion(int(count), weights[rows])
    return shares


def _level_clients(shares: IntArray, smallest: int, largest: int) -> bool:
    """Move samples in place until the client sizes are within bounds; return whether they are."""
    rows = shares.sum(axis=1)
    for sign, bound in ((1, largest), (-1, smallest)):  # first too large rows, then too small ones
        for row in np.flatnonzero(sign * (rows - bound) > 0):
            while (excess := sign * int(rows[row] - bound)) > 0:
                path = _find_path(shares, int(row), sign * (bound - rows) > 0, sign)
                if path is None:
                    return False
                end = path[-1][1]
                excess = min(excess, sign * int(bound - rows[end]))
                moved = _move_along(shares, path, excess, sign)
                rows[row] -= sign * moved
                rows[end] += sign * moved
    return True


def _find_path(
    shares: IntArray, start: int, goals: BoolArray, sign: int
) -> list[tuple[int, int, int]] | None:
    """Return the shortest path along which `start` gives samples to a goal, or None.

    With sign -1, `start` gets samples. A step is (from row, to row, class); it needs a share above
    one where samples leave, and a positive one where they arrive. The search is breadth first.
    """
    leave, arrive = (1, 0) if sign > 0 else (0, 1)
    steps: dict[int, tuple[int, int, int]] = {}
    unseen_rows = np.ones(len(shares), dtype=bool)
    unseen_rows[start] = False
    unseen_classes = np.ones(shares.shape[1], dtype=bool)
    queue = [start]
    for row in queue:
        for c in np.flatnonzero((shares[row] > leave) & unseen_classes):
            unseen_classes[c] = False
            reached = np.flatnonzero((shares[:, c] > arrive) & unseen_rows)
            unseen_rows[reached] = False
            steps.update((int(r), (row, int(r), int(c))) for r in reached)
            ends = reached[goals[reached]]
            if len(ends):
                end, path = int(ends[0]), []
                while end != start:
                    path.append(steps[end])
                    end = steps[end][0]
                return path[::-1]
            queue.extend(reached.tolist())
    return None


def _move_along(shares: IntArray, path: list[tuple[int, int, int]], wanted: int, sign: int) -> int:
    """Move up to `wanted` samples along the path in place; return how many were moved."""
    givers = [(row if sign > 0 else other, c) for row, other, c in path]
    takers = [(other if sign > 0 else row, c) for row, other, c in path]
    moved = min(wanted, *(int(shares[giver]) - 1 for giver in givers))
    for giver, taker in zip(givers, takers, strict=True):
        shares[giver] -= moved
        shares[taker] += moved
    return moved
