"""One-way pooling of summaries: an estimate, a count or a rate a unit."""
