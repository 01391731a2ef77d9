"""From finished runs to tables and figures.

`collect` keeps what a table needs of a run as a record (`records`), small enough to commit.
`report` writes a table from its records: data frames (`frames`, with the statistics of
`intervals`), figures (`figures`, `line_figures`, `map_figures`), where the cells come from
(`origin`) and a sanity gate (`gate`). `reading` gives notebooks the same, and `comparison` draws
runs that have no record yet.
"""

import warnings

# tqdm says it in every notebook without ipywidgets, where nothing here draws its bars.
warnings.filterwarnings("ignore", message="IProgress not found")
