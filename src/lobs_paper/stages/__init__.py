"""One stage per file, and what the stages share."""
