"""Made for another core."""
