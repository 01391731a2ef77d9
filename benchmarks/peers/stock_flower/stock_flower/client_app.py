"""The ClientApp of the quickstart: the model is built, loaded and sent back in every message."""

from functools import cache
from itertools import chain, islice, repeat

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.peers.task import Images, Normalize, Task, new_model, read_task

app = ClientApp()


@cache
def load(folder: str) -> tuple[Task, Images]:
    """Return the task and its images, read once per process, as the quickstart's data set is."""
    task = read_task(folder)
    return task, Images.of(task)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the model on local data."""
    task, data = load(str(context.run_config["folder"]))
    model = new_model(task, data)
    model.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
    images, labels = data.client(int(context.node_config["partition-id"]))
    batches = DataLoader(TensorDataset(images, labels), batch_size=task.batch_size, shuffle=True)
    loss = train_steps(model, batches, task)
    metrics = MetricRecord({"train_loss": loss, "num-examples": len(labels)})
    content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics})
    return Message(content, reply_to=message)


def train_steps(
    model: nn.Module, batches: DataLoader[tuple[torch.Tensor, ...]], task: Task
) -> float:
    """Train J steps and return their mean loss."""
    criterion, normalize = nn.CrossEntropyLoss(), Normalize(task)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=task.lr, momentum=task.momentum, weight_decay=task.weight_decay
    )
    model.train()
    running_loss = 0.0
    for images, labels in islice(chain.from_iterable(repeat(batches)), task.local_steps):
        optimizer.zero_grad()
        loss = criterion(model(normalize(images)), labels)
        loss.backward()
        optimizer.step()
        running_loss += loss.item()
    return running_loss / task.local_steps
