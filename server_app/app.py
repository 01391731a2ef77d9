"""The Flower ServerApp."""

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedta_app.config import RunConfig
from server_app.loop import run_rounds

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the rounds of the configuration; print the message of an error before it is raised."""
    try:
        run_rounds(grid, RunConfig.from_mapping(context.run_config))
    except Exception as error:
        print(f"error: {error}", flush=True)
        raise
