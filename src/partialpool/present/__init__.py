"""Arrays in, figures and tables out."""
