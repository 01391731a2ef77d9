"""The forward and backward pass of a mini-batch: op by op, from a CUDA graph, or compiled.

One graph, or one compilation, serves all clients of a process: loading weights, masks, clipping and
the optimizer's step are not part of it. A graph reads the parameters where they lie
(`fedta_app.vectors.flat` writes weights in place), and uses its own memory for inputs and
gradients.

- "off": PyTorch op by op.
- "cuda-graph": the same kernels, recorded once and launched together, with the same bits as "off".
  It is faster where the CPU launches kernels more slowly than the GPU runs them.
- "inductor": `torch.compile`, which fuses kernels and rounds differently, and takes about a minute
  per process.

Where recording or compiling fails, a line is printed, and passes run op by op.
"""

from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn.functional import cross_entropy

from fedta_app.algorithms.base import Loss
from fedta_app.errors import first_line

MODES = ("off", "cuda-graph", "inductor")  # what "auto" of the key `compile` may mean
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
_GRAPHS_KEPT = 4  # each holds the activations and gradients of a batch


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Return the autocast context of a forward pass; parameters and optimizer stay float32."""
    dtype = _AUTOCAST.get(precision)
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


def resolve_mode(name: str, device: torch.device) -> str:
    """Return the mode of the key `compile`, where "auto" is the fastest one with the same bits.

    >>> resolve_mode("auto", torch.device("cpu")), resolve_mode("inductor", torch.device("cpu"))
    ('off', 'inductor')
    """
    if name != "auto":
        return name
    return "cuda-graph" if device.type == "cuda" else "off"


class Passes:
    """Forward and backward passes of one model on one device.

    Parameters
    ----------
    model : nn.Module
        It is in training mode when it is used, and its parameters must not move in memory.
    precision : {"fp32", "tf32", "bf16", "fp16"}
    mode : {"off", "cuda-graph", "inductor"}
    batch_sizes : collection of int
        The batch sizes to record or compile; others run op by op. They are given beforehand, so
        that results do not depend on which client comes first.
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
        self._stream: torch.cuda.Stream | None = None
        if mode == "cuda-graph" and device.type != "cuda":
            self._give_up(f"CUDA graphs do not run on {device.type}")

    def __call__(
        self, inputs: Tensor, labels: Tensor, scaler: GradScaler, loss: Loss | None = None
    ) -> Tensor:
        """Put the gradients of the scaled mean loss into `.grad`, and return the unscaled loss.

        Every `.grad` must be None before. The loss stays on the device, so that the CPU need not
        wait. A loss other than the mean cross-entropy is neither recorded nor compiled.
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
        torch.compiler.reset()  # compilations of earlier runs count against a limit
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
        """Return the recording for such a batch, or None the first time (a warm-up)."""
        trained = [p for p in self._model.parameters() if p.requires_grad]
        key = (inputs.shape, *map(id, trained))
        if key not in self._recordings:
            self._recordings[key] = None
            return None
        recorded = sum(recording is not None for recording in self._recordings.values())
        if self._recordings[key] is None and recorded < _GRAPHS_KEPT:
            try:
                self._pool = self._pool or torch.cuda.graph_pool_handle()
                self._stream = self._stream or torch.cuda.Stream(self._device)
                loss = partial(self.loss, self._model)
                recording = Recording(loss, trained, inputs, labels, self._pool, self._stream)
                self._recordings[key] = recording
            except RuntimeError as error:
                self._give_up(first_line(error))
                self._forget_gradients()
        return self._recordings.get(key)

    def _forget_gradients(self) -> None:
        """Drop the gradients that a failed attempt left."""
        for parameter in self._model.parameters():
            parameter.grad = None

    def _give_up(self, reason: str) -> None:
        print(f"compile = '{self.mode}' is off in this process: {reason}", flush=True)
        self.mode = "off"
        self._recordings.clear()  # their memory is needed op by op
        self._pool = None


class Recording:
    """A forward and backward pass as a CUDA graph, with its own memory for inputs and gradients.

    Parameters
    ----------
    loss : callable
        The mean loss of inputs and labels.
    trained : list of Parameter
        Those that require a gradient; each gets the same gradient tensor after every replay.
    inputs, labels : Tensor
        A batch of the shapes to record.
    pool
        Memory pool that recordings share, since only one is replayed at a time.
    stream : torch.cuda.Stream
        The stream to record on, the same for all that share a pool; of the inputs' GPU, because
        torch would take one of the first GPU, and record nothing of what happens on another.
    """

    def __init__(
        self,
        loss: Callable[[Tensor, Tensor], Tensor],
        trained: list[nn.Parameter],
        inputs: Tensor,
        labels: Tensor,
        pool: Any,
        stream: torch.cuda.Stream,
    ) -> None:
        self._trained = trained
        self._inputs, self._labels = inputs.clone(), labels.clone()
        self._one = torch.ones((), device=inputs.device)
        self._scale = self._one.clone()
        self._graph = torch.cuda.CUDAGraph()
        for parameter in trained:
            parameter.grad = None  # so that a replay writes gradients and does not add to them
        before = torch.cuda.current_stream(inputs.device)
        # Other threads of this process may use the GPU meanwhile.
        options = {"pool": pool, "stream": stream, "capture_error_mode": "thread_local"}
        try:
            with torch.cuda.device(inputs.device), torch.cuda.graph(self._graph, **options):
                mean = loss(self._inputs, self._labels)
                (mean * self._scale).backward()
                self._loss = mean.detach()
        except RuntimeError:
            torch.cuda.set_stream(before)  # a failed recording may leave another stream set
            raise
        self._gradients = [parameter.grad for parameter in trained]

    def replay(self, inputs: Tensor, labels: Tensor, scaler: GradScaler) -> Tensor:
        """Run the recorded passes on another batch, with the scaler's current factor."""
        self._inputs.copy_(inputs)
        self._labels.copy_(labels)
        self._scale.copy_(scaler.scale(self._one))
        self._graph.replay()
        for parameter, gradient in zip(self._trained, self._gradients, strict=True):
            parameter.grad = gradient
        return self._loss.clone()
