"""From data to arrays; here, and in the row kernels, rows are indexed."""
