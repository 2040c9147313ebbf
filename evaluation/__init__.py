"""Judges and measurements, reports with tables and plots. Nothing under app imports this room at import time."""
