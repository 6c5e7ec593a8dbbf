"""Golden rankings of datasets: make, keep, look at."""
