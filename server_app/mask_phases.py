"""The phases that find the mask, one for each place where masks are calibrated."""

from collections.abc import Iterator
from typing import Any

import torch
from flwr.app import ArrayRecord
from torch import Tensor

from engine.client_memory import Setup
from engine.transport import pack_many, release
from fedta_app.analysis import block_density
from fedta_app.analysis.task_figures import save_block_density
from fedta_app.errors import RunError
from fedta_app.files import unless_refused
from fedta_app.masks import (
    ScoreSums,
    intersection,
    needs_scores,
    round_density,
    rule_named,
    union,
    vote,
)
from fedta_app.progress import counting
from fedta_app.runs.directory import run_path
from fedta_app.runs.loop import check_keys, check_tensor
from fedta_app.secure import FixedPoint, fraction_bits
from fedta_app.seeding import torch_generator
from fedta_app.training.scoring import (
    calibration,
    largest_score,
    own_mask,
    require_trained,
    scored_positions,
)
from fedta_app.training.shared_masks import IncompleteMaskError, shared_mask
from fedta_app.vectors import FlatMask
from server_app.missing import settle_missing
from server_app.phases import FederatedPhase
from server_app.ridge import among, groups_of
from server_app.state import ServerState
from strategies.reply_checks import check_mask, check_scores, check_vectors

_REPLY_BYTES = 2**28  # memory for scores that an engine collects before they are added


def mask_phase(state: ServerState) -> FederatedPhase:
    """Return the phase that finds the mask of the configuration."""
    config = state.config
    if config.mask_scope == "server":
        return ServerMask(state)
    if config.mask_scope == "global":
        return SummedScores(state) if needs_scores(config.mask_rule) else ServerMask(state)
    if rule_named(config.mask_rule).against_others is not None:
        return ContrastedMasks(state)
    return OwnMasks(state)


def _use_mask(state: ServerState, mask: FlatMask) -> None:
    """Let only the weights of the mask be trained from now on, and record its density."""
    state.set_mask(mask)
    named = state.workspace.weights.views(mask.mask)
    state.notes["mask"] = {
        "sha256": state.mask,
        "density": mask.density,
        "trained": mask.num_trained,
        "of": mask.mask.numel(),
    }
    with unless_refused():
        save_block_density(run_path(state.config) / "mask_density.png", block_density(named))


class ServerMask(FederatedPhase):
    """The server finds the mask alone: from the weights, at random, or on validation images."""

    name = "calibrate"

    def __init__(self, state: ServerState) -> None:
        super().__init__(state, 1)

    def work(self, number: int) -> None:
        """Find the mask in all its rounds."""
        _use_mask(self.state, own_mask(self.state.workspace, None))


class _Scores(FederatedPhase):
    """A phase in which clients send scores."""

    name = "calibrate"

    def replies(self, sampled: list[int], number: int, *, known: bool = False) -> Iterator[Tensor]:
        """Yield the scores of clients, in their order, as they arrive."""
        state, step = self.state, self._at_a_time()
        setup = Setup(head=state.head, down=state.mask)
        config = {"server-round": number, "known": known, **among(state.config, sampled)}
        with counting("clients", len(sampled)) as done:
            for first in range(0, len(sampled), step):
                clients = sampled[first : first + step]
                check = self._nothing if known else self._check
                for _, scores in self.ask(
                    clients, "train.calibrate", check, setup=setup, config=config
                ):
                    yield scores
                    done.add()

    def _check(self, client: int, scores: Tensor) -> None:
        rule, size = rule_named(self.state.config.mask_rule), self.state.weights.numel()
        check_scores(scores, size, rule.message_size(size))

    def _nothing(self, client: int, scores: Tensor) -> None:
        check_vectors({"scores": scores}, {"scores": 1}, torch.float32)

    def _at_a_time(self) -> int:
        """Return how many clients to ask at a time, so that their replies fit into memory."""
        fitting = _REPLY_BYTES // (4 * self.state.weights.numel())
        return max(self.state.clients_per_round, fitting)


class SummedScores(_Scores):
    """In each round, the scores of sampled clients are summed; the sums give the next mask.

    Scores are added on arrival: the server holds the sums and the vector of one client.
    """

    def __init__(self, state: ServerState) -> None:
        super().__init__(state, state.config.calibration_rounds)

    def work(self, number: int) -> None:
        """Sum the scores of a sample of clients and narrow the mask down."""
        state, config, nodes = self.state, self.state.config, self.state.exchange.nodes
        sampled = nodes.sample(config.calibration_fraction, config.seed, "calibrate", number)
        found: list[FlatMask] = []

        def find() -> FlatMask:
            found.append(self._narrowed(sampled, number))
            if state.exchange.costs.errors:
                raise IncompleteMaskError(found[0])
            return found[0]

        state.model()  # loads the weights and the head that are scored
        positions = (scored_positions(state.workspace, client, sampled) for client in sampled)
        mask = shared_mask(
            state.workspace, positions, number, state.trained(), find, elsewhere=state.deployed
        )
        if not found:
            self._count_replies(sampled, number)
        _use_mask(state, mask)

    def _narrowed(self, sampled: list[int], number: int) -> FlatMask:
        """Return the mask that the scores of the clients give."""
        state = self.state
        so_far = calibration(state.workspace, round=number - 1, mask=state.trained())
        mask = so_far.advance_by(self._complete(sampled, number))
        return require_trained(state.config, mask)

    def _complete(self, sampled: list[int], number: int) -> Iterator[Tensor]:
        """Yield the clients' scores, and raise RunError where they do not suffice."""
        secure = self.state.config.secure_aggregation
        yield from (self._sums if secure else self.replies)(sampled, number)
        if not self.state.exchange.costs.clients_ok:
            first = self.state.exchange.costs.errors[0]
            raise RunError(f"no client sent scores in round {number}: {first}")
        if self.state.config.calibration_fraction == 1:
            needs = (
                f"round {number} of the mask needs the scores of every client (a "
                "calibration-fraction below 1 asks for fewer)"
            )
            settle_missing(self.state, sampled, "scores", needs)

    def _sums(self, sampled: list[int], number: int) -> Iterator[Tensor]:
        """Yield the sums of the scores of groups of clients, of which the server sees no single."""
        state = self.state
        size, setup = state.weights.numel(), Setup(state.head, state.mask)
        told = {"server-round": number, "known": False, **among(state.config, sampled)}
        largest = largest_score(state.workspace, state.trained(), number, max(state.held))
        for group in groups_of(sampled, self._at_a_time(), secure=True):
            point = FixedPoint(64, fraction_bits(64, largest, len(group)))
            asked = (group, "train.calibrate", size, point, f"scores {number} {group[0]}")
            yield self.ask_for_sum(*asked, setup=setup, config=told).float()

    def _count_replies(self, sampled: list[int], number: int) -> None:
        """Tell the clients what they need, and count the scores of a mask that is known already."""
        rule = rule_named(self.state.config.mask_rule)
        scores = rule.message_size(self.state.weights.numel())
        for reply in self.replies(sampled, number, known=True):
            self.state.exchange.costs.bytes_up += 4 * (scores - len(reply))


class OwnMasks(FederatedPhase):
    """Each client calibrates a mask of its own; the masks are kept, or combined into one.

    With mask-scope "client" every client trains by its own mask, and what any of them trains
    travels. With vote, union or intersection the masks of the sampled clients are combined.
    """

    name = "calibrate"

    def __init__(self, state: ServerState) -> None:
        config, nodes = state.config, state.exchange.nodes
        self._keep = config.mask_scope == "client"
        fraction = 1.0 if self._keep else config.calibration_fraction
        self._sampled = nodes.sample(fraction, config.seed, "calibrate", 1)
        super().__init__(state, -(-len(self._sampled) // state.clients_per_round))

    def work(self, number: int) -> None:
        """Collect the masks of the next clients; after the last ones, combine them."""
        self._collect(number - 1)
        if number == self.num_rounds:
            self._combine()

    def _collect(self, group: int, arrays: ArrayRecord | None = None) -> None:
        state, step = self.state, self.state.clients_per_round
        clients = self._asked(group * step, (group + 1) * step)
        setup = Setup(head=state.head)
        for partition_id, bits in self.ask(
            clients, "train.mask", self._check_mask, arrays=arrays, setup=setup
        ):
            digest = state.memory.keep(bits)
            state.own_masks[partition_id] = digest
            state.exchange.remember(partition_id, Setup(up=digest))
        if self._keep:
            settle_missing(state, clients, "masks", "training needs the mask of every client")

    def _asked(self, first: int, last: int) -> list[int]:
        """Return the clients at these places that are asked for a mask."""
        return self._sampled[first:last]

    def _check_mask(self, client: int, bits: Tensor) -> None:
        config, size = self.state.config, self.state.weights.numel()
        exact = None if config.score_threshold else round_density(config.sparsity, size)
        check_mask(bits, size, exact)

    def _combine(self) -> None:
        state, scope = self.state, self.state.config.mask_scope
        if not state.own_masks:
            raise RunError(f"no client found a mask: {state.exchange.costs.errors[0]}")
        found = (state.memory.mask(digest) for _, digest in sorted(state.own_masks.items()))
        masks = (mask for mask in found if mask is not None)
        if scope == "vote":  # has many ties: broken by position, they would favour the first layers
            generator = torch_generator(state.config.seed, "ties of votes")
            lots = torch.rand(state.weights.numel(), generator=generator)
            mask = vote(masks, sparsity=state.config.sparsity, order=lots)
        elif scope == "intersection":
            mask = intersection(masks)
        else:
            mask = union(masks)
        if not mask.num_trained:
            raise RunError("the clients' masks have no weight in common: choose another mask-scope")
        _use_mask(state, mask)
        if not self._keep:
            state.own_masks = {}


class ContrastedMasks(OwnMasks, _Scores):
    """Each client calibrates a mask of its own, by its scores in relation to those of all others.

    In the first round the scores of all clients are summed; in the rounds after it the sum goes to
    the clients, a group at a time, and their masks come back.
    """

    def __init__(self, state: ServerState) -> None:
        super().__init__(state)
        self.num_rounds += 1
        self._total = torch.zeros(state.weights.numel())

    def work(self, number: int) -> None:
        """Sum the scores of all clients, or collect the masks of the next ones."""
        if number == 1:
            self._total = self._sum()
            return
        transport = self.state.exchange.transport
        sent = pack_many({"vector": self._total}, transport)
        self._collect(number - 2, sent)
        release(sent, transport)
        if number == self.num_rounds:
            self._combine()

    def _asked(self, first: int, last: int) -> list[int]:
        absent = self.state.notes.get("missing-clients", {}).get("scores", {})  # no part of the sum
        return [client for client in super()._asked(first, last) if str(client) not in absent]

    def _sum(self) -> Tensor:
        """Return the scores summed over all clients, (N,)."""
        sums = ScoreSums(self.state.weights.numel())
        for scores in self.replies(self._sampled, 1):
            sums.add(scores)
        if sums.num_clients < 2:
            raise RunError("fewer than two clients sent scores: nothing to compare one with")
        settle_missing(self.state, self._sampled, "scores", "masks need the scores of every client")
        return sums.scores().float()

    def state_dict(self) -> dict[str, Any]:
        """Return the sum of the scores."""
        return {"total": self._total}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the sum."""
        check_keys(state, ("total",), "calibration")
        self._total = check_tensor(state["total"], self._total, "scores")
