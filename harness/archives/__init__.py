"""What data sets are shipped in: finding, fetching, checking and unpacking it."""
