"""The forward and backward pass of a mini-batch: op by op, from a CUDA graph, or compiled.

What differs between clients stays outside: loading weights, masks, clipping, the optimizer's step.
So one graph, or one compilation, serves all clients of a process, dense or masked. It reads the
parameters where they lie (`fedta_app.vectors.flat` writes weights in place, it never moves them),
and its inputs and gradients have memory of their own, the same at every replay.

- "off": PyTorch op by op.
- "cuda-graph": the same kernels, recorded once and launched together; the same bits as "off". Pays
  where the CPU launches kernels more slowly than the GPU runs them: small models, fast GPUs.
- "inductor": `torch.compile`, which fuses kernels; other bits, and about a minute per process.

What cannot be recorded or compiled runs op by op, after one printed line.
"""

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn.functional import cross_entropy

from fedta_app.algorithms.base import Loss
from fedta_app.errors import first_line

MODES = ("off", "cuda-graph", "inductor")
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
_GRAPHS_KEPT = 4  # each holds the activations and gradients of a batch


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Return the precision of a forward pass; parameters and optimizer stay in float32."""
    dtype = _AUTOCAST.get(precision)
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


class Passes:
    """Forward and backward passes of one model on one device.

    Parameters
    ----------
    model : nn.Module
        In training mode when it is used; its parameters must not move.
    precision : {"fp32", "tf32", "bf16", "fp16"}
    mode : {"off", "cuda-graph", "inductor"}
    batch_sizes : collection of int
        The sizes of batches that are worth recording or compiling; others run op by op. Which
        client comes first must not decide what is computed how.
    """

    def __init__(
        self,
        model: nn.Module,
        device: torch.device,
        *,
        precision: str,
        mode: str,
        batch_sizes: Collection[int],
    ) -> None:
        self.mode = mode
        self._model = model
        self._device = device
        self._precision = precision
        self._sizes = frozenset(batch_sizes)
        self._recordings: dict[tuple[object, ...], Recording | None] = {}
        self._compiled: Callable[[Tensor], Tensor] | None = None
        self._pool: Any = None
        if mode == "cuda-graph" and device.type != "cuda":
            self._give_up(f"{device.type} has none")

    def __call__(
        self, inputs: Tensor, labels: Tensor, scaler: GradScaler, loss: Loss | None = None
    ) -> Tensor:
        """Put the gradients of the scaled mean loss into `.grad`, and return the loss.

        Every `.grad` is None before. The result is on the device, so that nobody waits for it. A
        loss other than the mean cross-entropy is neither recorded nor compiled.
        """
        if loss is not None:
            return self._eager(self._model, inputs, labels, scaler, loss)
        if self.mode != "off" and len(inputs) in self._sizes:
            if self.mode == "inductor":
                return self._through_compiled(inputs, labels, scaler)
            recording = self._recording(inputs, labels)
            if recording is not None:
                return recording.replay(inputs, labels, scaler)
        return self._eager(self._model, inputs, labels, scaler)

    def loss(
        self,
        forward: Callable[[Tensor], Tensor],
        inputs: Tensor,
        labels: Tensor,
        loss: Loss = cross_entropy,
    ) -> Tensor:
        """Return the mean loss, in the run's precision."""
        with autocast(self._precision, self._device):
            return loss(forward(inputs), labels)

    def _eager(
        self,
        forward: Callable[[Tensor], Tensor],
        inputs: Tensor,
        labels: Tensor,
        scaler: GradScaler,
        loss: Loss = cross_entropy,
    ) -> Tensor:
        mean_loss = self.loss(forward, inputs, labels, loss)
        scaler.scale(mean_loss).backward()
        return mean_loss.detach()

    def _through_compiled(self, inputs: Tensor, labels: Tensor, scaler: GradScaler) -> Tensor:
        if self._compiled is not None:
            return self._eager(self._compiled, inputs, labels, scaler)
        torch.compiler.reset()  # earlier runs of this process count against a limit
        try:
            compiled: Callable[[Tensor], Tensor] = torch.compile(self._model, dynamic=False)
            loss = self._eager(compiled, inputs, labels, scaler)
        except Exception as error:  # no C compiler, an old card, a new Python
            self._give_up(first_line(error))
            self._forget_gradients()
            return self._eager(self._model, inputs, labels, scaler)
        self._compiled = compiled
        return loss

    def _recording(self, inputs: Tensor, labels: Tensor) -> "Recording | None":
        """Return the recording for such a batch; None at first sight, which warms libraries up."""
        trained = [p for p in self._model.parameters() if p.requires_grad]
        key = (inputs.shape, *map(id, trained))
        if key not in self._recordings:
            if len(self._recordings) < _GRAPHS_KEPT:
                self._recordings[key] = None
            return None
        if self._recordings[key] is None:
            try:
                self._recordings[key] = self._record(trained, inputs, labels)
            except RuntimeError as error:
                self._give_up(first_line(error))
                self._forget_gradients()
        return self._recordings[key]

    def _record(self, trained: list[nn.Parameter], inputs: Tensor, labels: Tensor) -> "Recording":
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        return Recording(
            lambda images, targets: self.loss(self._model, images, targets),
            trained,
            inputs,
            labels,
            self._pool,
        )

    def _forget_gradients(self) -> None:
        """Drop what an attempt that failed half-way left."""
        for parameter in self._model.parameters():
            parameter.grad = None

    def _give_up(self, reason: str) -> None:
        print(f"compile = '{self.mode}' is off in this process: {reason}", flush=True)
        self.mode = "off"


class Recording:
    """A forward and backward pass as a CUDA graph, with memory of its own for what goes in and out.

    Parameters
    ----------
    loss : callable
        The mean loss of inputs and labels.
    trained : list of Parameter
        Those that require a gradient; each gets the same gradient tensor after every replay.
    inputs, labels : Tensor
        A batch of the shapes to record.
    pool
        Memory that recordings share, since only one is replayed at a time.
    """

    def __init__(
        self,
        loss: Callable[[Tensor, Tensor], Tensor],
        trained: list[nn.Parameter],
        inputs: Tensor,
        labels: Tensor,
        pool: Any,
    ) -> None:
        self._trained = trained
        self._inputs, self._labels = inputs.clone(), labels.clone()
        self._one = torch.ones((), device=inputs.device)
        self._scale = self._one.clone()
        self._graph = torch.cuda.CUDAGraph()
        for parameter in trained:
            parameter.grad = None  # so that a replay writes gradients and does not add to them
        stream = torch.cuda.current_stream(inputs.device)
        try:
            # Other threads of this process may use the GPU meanwhile.
            with torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):
                mean = loss(self._inputs, self._labels)
                (mean * self._scale).backward()
                self._loss = mean.detach()
        except RuntimeError:
            torch.cuda.set_stream(stream)  # a recording that fails may leave its own in place
            raise
        self._gradients = [parameter.grad for parameter in trained]

    def replay(self, inputs: Tensor, labels: Tensor, scaler: GradScaler) -> Tensor:
        """Do the recorded passes on another batch, with the scaler's present factor."""
        self._inputs.copy_(inputs)
        self._labels.copy_(labels)
        self._scale.copy_(scaler.scale(self._one))
        self._graph.replay()
        for parameter, gradient in zip(self._trained, self._gradients, strict=True):
            parameter.grad = gradient
        return self._loss.clone()
