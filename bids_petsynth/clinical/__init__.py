"""Clinical record: from the rows of a dataset's tables to canonical variables in canonical units."""
