"""What is done with a run once it is over: read it from Python, export its model, describe it."""

from fedta_app.finished.export import export_run
from fedta_app.finished.reading import Run, load_run

__all__ = ["Run", "export_run", "load_run"]
