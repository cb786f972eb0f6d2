"""Reading a BIDS dataset into cases, and writing outputs: names, sidecars, the atomic sink, the dataset's own files."""
