"""Tracers and the figures that are read off a PET volume: regional SUVR, Centiloid, probability of positivity."""
