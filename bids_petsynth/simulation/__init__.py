"""People, anatomy, uptake, scanner and plasma that do not exist: everything here is simulated and says so."""
