"""Engines: how a posterior is found."""
