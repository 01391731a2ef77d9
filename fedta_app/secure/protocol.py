r"""Secure aggregation, as a simulation: who masks what, and how the masks leave the sum.

Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning", CCS 2017,
Figure 4, for a server that is honest but curious. Client i sends its integers

.. math::

    y_i = x_i + \mathrm{PRG}(b_i) + \sum_{j > i} \mathrm{PRG}(s_{ij})
    - \sum_{j < i} \mathrm{PRG}(s_{ij}) \pmod{2^{bits}},

with a seed :math:`b_i` of its own and a seed :math:`s_{ij}` that it shares with each other client
of the sum. Of both b and the key behind s every client has a share. When the vectors are in, the
server asks those that answered for their shares: of b for clients that answered, of the key for
those that dropped out, never both of one client. With the shares of at least t clients it takes
all masks away from the sum; with fewer it can take away none.

**What is simulated.** Vectors, masks, shares, drop-outs and the sum are computed as in the paper.
The two rounds of messages before, in which clients exchange public keys and encrypted shares, are
left out: every process derives what they would bring from the run's seed. So keys are known to
whoever knows the seed, and the generator that expands them (Mersenne's twister) is no
cryptographic one. A run says what the method costs and does to the results; it protects nobody.
"""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from fedta_app.errors import RunError
from fedta_app.secure.shamir import PRIME, SHARE_BYTES, reconstruct, split

FEWEST_IN_A_SUM = 3  # clients


class UnmaskError(RuntimeError):
    """Too few shares to take the masks away; the message is one sentence."""


@dataclass(frozen=True)
class SecureSum:
    """One sum of vectors over clients, as each of the parties sees it.

    Parameters
    ----------
    seed : int
        Of the run; stands for the exchange of keys.
    name : str
        What is summed, as "train 3"; no two sums of a session have the same.
    clients : sequence of int
        Partition ids of those that were asked, at least 2, sorted.
    threshold : int
        t, how many of them have to answer; more than half, so that a server which asks two halves
        for different shares learns nothing.

    Examples
    --------
    >>> whole = SecureSum(0, "example", (3, 5, 9), threshold=2)
    >>> values = {client: torch.tensor([client], dtype=torch.int32) for client in (3, 5, 9)}
    >>> total = whole.masked(3, values[3]) + whole.masked(9, values[9])  # client 5 drops out
    >>> shares = {client: whole.shares(client, (3, 9)) for client in (3, 9)}
    >>> whole.unmasked(total, (3, 9), shares)
    tensor([12], dtype=torch.int32)
    """

    seed: int
    name: str
    clients: tuple[int, ...]
    threshold: int

    def __post_init__(self) -> None:
        if len(self.clients) < 2 or list(self.clients) != sorted(set(self.clients)):
            raise ValueError(f"a secure sum over the clients {self.clients}; two or more, sorted")
        if not len(self.clients) // 2 < self.threshold <= len(self.clients):
            raise ValueError(
                f"a threshold of {self.threshold} of {len(self.clients)} clients; it is more than "
                "half of them, and at most all"
            )

    @classmethod
    def over(cls, seed: int, name: str, clients: Sequence[int], share: float) -> "SecureSum":
        """Return a sum that opens when at least this share of its clients answers.

        The share is above a half; what it gives is rounded up. A sum of fewer than three opens
        never: of two, each can take itself away, and has the other's vector.

        Raises
        ------
        RunError
            When there are fewer than three clients.
        """
        if len(clients) < FEWEST_IN_A_SUM:
            raise RunError(
                f"secure aggregation cannot add up what {len(clients)} clients send, in the sum "
                f"{name!r}: of two each can take itself away; it takes {FEWEST_IN_A_SUM} or more"
            )
        least = max(len(clients) // 2 + 1, math.ceil(share * len(clients)), FEWEST_IN_A_SUM)
        return cls(seed, name, tuple(sorted(clients)), least)

    def to_config(self) -> dict[str, str | int]:
        """Return what a message says of the sum."""
        clients = " ".join(map(str, self.clients))
        return {
            "secure-name": self.name, "secure-clients": clients,
            "secure-threshold": self.threshold,
        }  # fmt: skip

    @classmethod
    def from_config(cls, seed: int, settings: Mapping[str, Any]) -> "SecureSum":
        """Return the sum that a message is about.

        Raises
        ------
        ValueError
            When it is about none: the server asks for a vector in the clear.
        """
        if "secure-name" not in settings:
            raise ValueError("secure-aggregation is true, and the server asks for a bare vector")
        clients = tuple(int(part) for part in str(settings["secure-clients"]).split())
        return cls(seed, str(settings["secure-name"]), clients, int(settings["secure-threshold"]))

    def masked(self, client: int, values: Tensor) -> Tensor:
        """Return a client's integers (D,) with its masks added, modulo 2**bits."""
        found = values + _expand(self._secret(client, True), values)
        for other in self.clients:
            if other != client:
                self._add_pair(found, client, other)
        return found

    def shares(self, client: int, answered: Sequence[int]) -> Tensor:
        """Return what a client tells the server so that it can take the masks away.

        Parameters
        ----------
        answered : sequence of int
            The clients whose vectors arrived.

        Returns
        -------
        uint8 Tensor of shape (n, 66)
            A share of each client's secret, in the order of `clients`.

        Raises
        ------
        UnmaskError
            When they are fewer than the threshold, or not of this sum: a client that told its
            shares then would give single vectors away.
        """
        there = set(answered)
        if not there <= set(self.clients) or len(there) < self.threshold:
            raise UnmaskError(
                f"{len(there)} of {len(self.clients)} clients are in the sum {self.name!r}, and "
                f"at least {self.threshold} have to be"
            )
        found, place = bytearray(), self._place(client)
        for other in self.clients:
            own = other in there
            secret, draw = self._secret(other, own), self._draws(other, own)
            share = split(secret, self.threshold, [place], draw)[place]
            found += share.to_bytes(SHARE_BYTES, "big")
        return torch.frombuffer(found, dtype=torch.uint8).reshape(-1, SHARE_BYTES)

    def unmasked(
        self, total: Tensor, answered: Sequence[int], shares: Mapping[int, Tensor]
    ) -> Tensor:
        """Return the sum of the clients that answered, from the sum of their masked integers.

        Parameters
        ----------
        total : integer Tensor of shape (D,)
        answered : sequence of int
            Whose vectors are in it.
        shares : mapping of int to uint8 Tensor of shape (n, 66)
            What clients told, by their partition ids.

        Raises
        ------
        UnmaskError
            When they are fewer than the threshold, or contradict each other.
        """
        if len(shares) < self.threshold:
            raise UnmaskError(
                f"{len(shares)} clients told their shares of the sum {self.name!r}, and at least "
                f"{self.threshold} have to"
            )
        found, there = total.clone(), set(answered)
        for number, client in enumerate(self.clients):
            secret = self._reconstructed(client, {c: told[number] for c, told in shares.items()})
            if client in there:
                found -= _expand(secret, total)
            else:  # what it would have added cancels what the others added for it
                key = _key_of(secret)
                for other in there:
                    self._add_pair(found, client, other, key)
        return found

    def _reconstructed(self, client: int, shares: Mapping[int, Tensor]) -> int:
        """Return a client's secret from the shares of it that others told."""
        values = {
            self._place(holder): int.from_bytes(bytes(share.tolist()), "big")
            for holder, share in shares.items()
        }
        secret = reconstruct(values)
        # Any threshold of them gives the same, unless one is wrong.
        few = reconstruct({place: values[place] for place in sorted(values)[: self.threshold]})
        if secret != few or secret >= 2**256:
            raise UnmaskError(
                f"the shares of client {client}'s secret in the sum {self.name!r} do not fit "
                "together"
            )
        return secret

    def _add_pair(
        self, vector: Tensor, client: int, other: int, key: Callable[[bytes], bytes] | None = None
    ) -> None:
        """Add what a client adds for another, by its private key or by one that is given."""
        agree = key or _key_of(self._secret(client, False))
        mask = _expand(int.from_bytes(agree(self._public(other)), "big"), vector)
        vector.add_(mask) if other > client else vector.sub_(mask)

    def _place(self, client: int) -> int:
        return self.clients.index(client) + 1

    def _secret(self, client: int, own: bool) -> int:
        """Return b of a client, or its private key, as 32 bytes."""
        return int.from_bytes(self._derived("b" if own else "key", client), "big")

    def _public(self, client: int) -> bytes:
        """Return what the client told everybody in the exchange that is left out."""
        return _public_of(self._derived("key", client))

    def _draws(self, client: int, own: bool) -> Callable[[], int]:
        """Return the coefficients of the polynomial of a client's secret, one after the other."""
        number = iter(range(len(self.clients)))
        which = "b" if own else "key"

        def draw() -> int:
            index = next(number)
            parts = [self._derived(f"share {which} {index} {part}", client) for part in range(3)]
            return int.from_bytes(b"".join(parts), "big") % PRIME

        return draw

    def _derived(self, what: str, client: int) -> bytes:
        text = f"{self.seed}\x1f{self.name}\x1f{what}\x1f{client}"
        return hashlib.sha256(text.encode()).digest()


def _expand(seed: int, like: Tensor) -> Tensor:
    """Return integers of the shape and type of a tensor, uniform over all of its type."""
    bits = torch.iinfo(like.dtype).bits
    generator = torch.Generator().manual_seed(seed % 2**63)
    halves = like.shape if bits == 32 else (*like.shape, 2)
    drawn = torch.empty(halves, dtype=torch.int64).random_(0, 2**32, generator=generator)
    if bits == 32:
        return drawn.to(torch.int32)
    return (drawn[..., 0] << 32) | drawn[..., 1]


def _key_of(secret: int) -> Callable[[bytes], bytes]:
    """Return the function by which a private key and another's public key give their seed."""
    # Not at the top of the module: no run without secure aggregation needs it.
    from cryptography.hazmat.primitives.asymmetric.x25519 import (
        X25519PrivateKey,
        X25519PublicKey,
    )

    private = X25519PrivateKey.from_private_bytes(secret.to_bytes(32, "big"))

    def agree(public: bytes) -> bytes:
        shared = private.exchange(X25519PublicKey.from_public_bytes(public))
        return hashlib.sha256(shared).digest()

    return agree


@lru_cache(maxsize=1024)
def _public_of(private: bytes) -> bytes:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()
