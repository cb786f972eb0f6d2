"""From a T1w to labelled, aligned anatomy: reading, labelling network, alignment, bias correction."""
