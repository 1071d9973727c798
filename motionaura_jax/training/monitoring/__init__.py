"""Alarms, watchdog, goodput, progress, profiles and metric writers: what runs next to the steps."""
