"""`report`: write tables and figures from the records."""

import argparse
import sys

from experiments import RESULTS
from experiments.exit_status import ExitStatus
from experiments.reporting.records import RecordError
from experiments.reporting.report import kept_tables, write_report
from experiments.running.presets import load_table
from fedta_app.errors import ConfigError


def run(options: argparse.Namespace) -> ExitStatus:
    """Write the report of a table, or of each that has records."""
    records = options.records or RESULTS
    chosen = [load_table(options.table, options.scale)] if options.table else kept_tables(records)
    if options.scale and not options.table:
        chosen = [table for table in chosen if table.scale and table.scale.name == options.scale]
    if not chosen:
        at = f" at --scale {options.scale}" if options.scale else ""
        raise RecordError(
            f"{records.absolute()} holds no cells of any table{at}: after `run TABLE`, "
            "`collect TABLE` puts them there"
        )
    out, status = options.out or records, ExitStatus.FINISHED
    for table in chosen:
        try:
            lines = write_report(table, records, out)
        except (RecordError, ConfigError) as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            status = ExitStatus.FAILED
            continue
        print(f"{table.label}: {(out / table.label / 'report.md').absolute()}")
        for line in lines:
            print(f"  {line}", flush=True)
    return status
