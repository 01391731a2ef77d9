"""The phases that find the mask: by scores summed over clients, by clients' own masks, or here."""

import time
from collections.abc import Iterator

import torch
from torch import Tensor

from engine.client_memory import Setup, vector_bytes
from engine.transport import unpack
from fedta_app.analysis.task_figures import save_block_density
from fedta_app.analysis.task_vectors import block_density
from fedta_app.errors import RunError
from fedta_app.masks.agreement import agreement_scores
from fedta_app.masks.building import needs_scores
from fedta_app.masks.sets import intersection_mask, union_mask, vote_mask
from fedta_app.runs.directory import run_path
from fedta_app.runs.metrics import Row
from fedta_app.seeding import torch_generator
from fedta_app.training.scoring import mask_of_round, own_mask
from fedta_app.vectors.mask import FlatMask
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
        size = state.weights.numel()
        # float64: the sum over clients is the sum over their images, up to one rounding.
        total = torch.zeros(size, dtype=torch.float64)
        agreement = _Agreement(size) if config.mask_rule == "agreement" else None
        for vector in self._replies(sampled, number):
            if len(vector) != size * (1 if agreement is None else 2):
                raise RunError(f"a client scored {len(vector)} numbers for {size} weights")
            total += vector[:size]
            if agreement is not None:
                agreement.add(vector[size:])
        self._check_replies(number)
        if agreement is not None:
            total = agreement.scores(total)
        previous = state.travelling()
        mask = mask_of_round(state.workspace, total.float(), previous, number)
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
                yield unpack(reply.content.array_records["arrays"]).cpu()

    def _at_a_time(self) -> int:
        """Return how many clients to ask at a time: as many replies as fit into memory."""
        fitting = _REPLY_BYTES // (4 * self.state.weights.numel())
        return max(_per_round(self.state), fitting)


class _Agreement:
    """Sums of the clients' mean gradients and of their squares, for the rule "agreement"."""

    def __init__(self, size: int) -> None:
        self._sum = torch.zeros(size, dtype=torch.float64)
        self._squares = torch.zeros(size, dtype=torch.float64)
        self._clients = 0

    def add(self, gradient: Tensor) -> None:
        self._sum += gradient
        self._squares += gradient.double().square()
        self._clients += 1

    def scores(self, total: Tensor) -> Tensor:
        summed, sums, squares = {"_": total}, {"_": self._sum}, {"_": self._squares}
        return agreement_scores(summed, sums, squares, self._clients)["_"]


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
        masks = ({"_": state.memory.mask(d).mask} for _, d in sorted(state.own_masks.items()))  # type: ignore[union-attr]
        if scope == "vote":
            # Ties are many. Broken by position they would favour the first layers.
            generator = torch_generator(state.config.seed, "ties of votes")
            lots = torch.rand(state.weights.numel(), generator=generator).to(state.weights.device)
            combined = vote_mask(masks, sparsity=state.config.sparsity, scores={"_": lots})
        elif scope == "intersection":
            combined = intersection_mask(masks)
        else:
            combined = union_mask(masks)
        mask = FlatMask(combined["_"])
        if not mask.num_trained:
            raise RunError("the clients' masks have no weight in common: choose another mask-scope")
        state.set_mask(mask)
        _note_mask(state, mask)
        if not self._keep:
            state.own_masks = {}
