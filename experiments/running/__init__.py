"""Running the cells of tables."""
