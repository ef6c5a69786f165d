"""Devices: how fast they are, and what a program compiled for them does."""
