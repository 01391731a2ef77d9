"""Running the cells of tables: a cell is one run, of one preset with one seed."""
