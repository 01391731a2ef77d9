"""The phases that find the mask: by scores summed over clients, by clients' own masks, or here."""

import time
from collections.abc import Iterator

import torch
from torch import Tensor

from engine.client_memory import Setup, vector_bytes
from engine.transport import unpack
from fedta_app.analysis import block_density
from fedta_app.analysis.task_figures import save_block_density
from fedta_app.errors import RunError
from fedta_app.masks import intersection, needs_scores, rule_named, union, vote
from fedta_app.runs.directory import run_path
from fedta_app.runs.metrics import Row
from fedta_app.seeding import torch_generator
from fedta_app.training.scoring import calibration, own_mask, require_trained
from fedta_app.vectors import FlatMask
from server_app.phases import FederatedPhase
from server_app.state import ServerState

_REPLY_BYTES = 2**28  # of scores that wait to be added, on engines that collect replies first


def mask_phase(state: ServerState) -> FederatedPhase:
    """Return the phase that finds the mask of the configuration."""
    config = state.config
    if config.mask_scope == "server":
        return ServerMask(state)
    if config.mask_scope == "global":
        return SummedScores(state) if needs_scores(config.mask_rule) else ServerMask(state)
    return OwnMasks(state)


def _per_round(state: ServerState) -> int:
    """Return how many clients a training round asks: their replies fit into memory."""
    return max(1, round(state.config.fraction_train * len(state.exchange.nodes)))


def _note_mask(state: ServerState, mask: FlatMask) -> None:
    named = state.workspace.weights.views(mask.mask)
    state.notes["mask"] = {
        "sha256": state.mask,
        "density": mask.density,
        "trained": mask.num_trained,
        "of": mask.mask.numel(),
    }
    path = run_path(state.config) / "mask_density.png"
    save_block_density(path, block_density(named))


class ServerMask(FederatedPhase):
    """The server finds the mask alone: by the weights, at random, or on its validation images."""

    name = "calibrate"

    def __init__(self, state: ServerState) -> None:
        super().__init__(state, 1)

    def run_round(self, number: int) -> Row:
        """Find the mask in all its rounds."""
        began = time.perf_counter()
        self.state.exchange.begin_round()
        mask = own_mask(self.state.workspace, None)
        self.state.set_mask(mask)
        _note_mask(self.state, mask)
        return self.row(number, began)


class SummedScores(FederatedPhase):
    """Sampled clients score the weights in every round; the sums give the mask of the round.

    The scores are added as they come: the server holds the sums and one client's vector.
    """

    name = "calibrate"

    def __init__(self, state: ServerState) -> None:
        super().__init__(state, state.config.calibration_rounds)

    def run_round(self, number: int) -> Row:
        """Sum the scores of a sample and narrow the mask down."""
        began = time.perf_counter()
        state, config = self.state, self.state.config
        nodes = state.exchange.nodes
        sampled = nodes.sample(config.calibration_fraction, config.seed, "calibrate", number)
        state.exchange.begin_round()
        rule, size = rule_named(config.mask_rule), state.weights.numel()
        sums = rule.sums(size)
        for message in self._replies(sampled, number):
            if len(message) != rule.message_size(size):
                raise RunError(f"a client scored {len(message)} numbers for {size} weights")
            sums.add(message)
        self._check_replies(number)
        so_far = calibration(state.workspace, round=number - 1, mask=state.travelling())
        mask = require_trained(config, so_far.advance(sums.scores().float()))
        state.set_mask(mask)
        _note_mask(state, mask)
        return self.row(number, began)

    def _check_replies(self, number: int) -> None:
        """Refuse a mask without anybody's scores; or without somebody's, where all are asked."""
        costs, fraction = self.state.exchange.costs, self.state.config.calibration_fraction
        if not costs.clients_ok:
            raise RunError(f"no client scored in round {number}: {costs.errors[0]}")
        if costs.errors and fraction == 1:
            raise RunError(
                "calibration-fraction = 1.0 promises the mask of all data, and "
                f"{len(costs.errors)} clients did not score in round {number} (a smaller share "
                f"does without them): {costs.errors[0]}"
            )

    def _replies(self, sampled: list[int], number: int) -> Iterator[Tensor]:
        state, step = self.state, self._at_a_time()
        setup = Setup(head=state.head, down=state.mask)
        for first in range(0, len(sampled), step):
            chosen = sampled[first : first + step]
            messages = state.exchange.messages(
                chosen,
                "train.calibrate",
                config={"server-round": number},
                setup=lambda partition_id: setup,
            )
            for partition_id, reply in state.exchange.in_order(chosen, state.send(messages)):
                state.exchange.remember(partition_id, setup)
                yield unpack(reply.content.array_records["arrays"])

    def _at_a_time(self) -> int:
        """Return how many clients to ask at a time: as many replies as fit into memory."""
        fitting = _REPLY_BYTES // (4 * self.state.weights.numel())
        return max(_per_round(self.state), fitting)


class OwnMasks(FederatedPhase):
    """Clients calibrate masks of their own, and keep them or put them together.

    With mask-scope "client" every client trains by its own mask, and what any of them trains
    travels. With vote, union or intersection the masks of the sampled clients make one.
    """

    name = "calibrate"

    def __init__(self, state: ServerState) -> None:
        config, nodes = state.config, state.exchange.nodes
        self._keep = config.mask_scope == "client"
        fraction = 1.0 if self._keep else config.calibration_fraction
        self._sampled = nodes.sample(fraction, config.seed, "calibrate", 1)
        self._step = _per_round(state)
        super().__init__(state, -(-len(self._sampled) // self._step))

    def run_round(self, number: int) -> Row:
        """Collect the next clients' masks; after the last ones, put them together."""
        began = time.perf_counter()
        state = self.state
        setup = Setup(head=state.head)
        chosen = self._sampled[(number - 1) * self._step : number * self._step]
        state.exchange.begin_round()
        messages = state.exchange.messages(chosen, "train.mask", setup=lambda partition_id: setup)
        for partition_id, reply in state.exchange.in_order(chosen, state.send(messages)):
            bits = vector_bytes(unpack(reply.content.array_records["arrays"]))
            digest = state.memory.store.put(bits)
            state.own_masks[partition_id] = digest
            state.exchange.remember(partition_id, Setup(head=state.head, up=digest))
        if state.exchange.costs.errors and self._keep:
            raise RunError(f"every client needs its mask: {state.exchange.costs.errors[0]}")
        if number == self.num_rounds:
            self._combine()
        return self.row(number, began)

    def _combine(self) -> None:
        state, scope = self.state, self.state.config.mask_scope
        if not state.own_masks:
            raise RunError(f"no client found a mask: {state.exchange.costs.errors[0]}")
        found = (state.memory.mask(digest) for _, digest in sorted(state.own_masks.items()))
        masks = (mask for mask in found if mask is not None)
        if scope == "vote":
            # Ties are many. Broken by position they would favour the first layers.
            generator = torch_generator(state.config.seed, "ties of votes")
            lots = torch.rand(state.weights.numel(), generator=generator)
            mask = vote(masks, sparsity=state.config.sparsity, order=lots)
        elif scope == "intersection":
            mask = intersection(masks)
        else:
            mask = union(masks)
        if not mask.num_trained:
            raise RunError("the clients' masks have no weight in common: choose another mask-scope")
        state.set_mask(mask)
        _note_mask(state, mask)
        if not self._keep:
            state.own_masks = {}
