"""Hold the data that ships with the package and the scripts that rebuild it."""
