"""The ServerApp of the quickstart: Flower's own FedAvg, and a clock."""

import json
import time
from pathlib import Path

from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from benchmarks.peers.task import Images, new_model, read_task

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train the rounds of the task, and write when each ended."""
    folder = str(context.run_config["folder"])
    task = read_task(folder)
    stamps = []

    def note_the_time(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        stamps.append(time.time())
        return None

    strategy = FedAvg(
        fraction_train=task.clients_per_round / task.num_clients,
        fraction_evaluate=0.0,
        min_available_nodes=task.num_clients,
    )
    result = strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(new_model(task, Images.of(task)).state_dict()),
        num_rounds=task.rounds,
        evaluate_fn=note_the_time,
    )
    if len(result.train_metrics_clientapp) != task.rounds:
        raise RuntimeError("clients failed; Flower's log says why")
    Path(folder, "stamps.json").write_text(json.dumps(stamps))
