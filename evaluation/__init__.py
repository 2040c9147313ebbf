"""Judges and measurements, reports with tables and plots. Nothing under app imports this room at import time.

`commands.run_tts` and `commands.run_codec` are the two doors; `metrics.METRICS` names everything that can be measured.
"""
