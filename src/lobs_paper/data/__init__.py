"""The data sets: how each is fetched, and how its images are read."""
