"""What a user does with a fit."""
