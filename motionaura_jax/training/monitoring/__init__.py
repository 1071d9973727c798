"""Monitoring of a run: metrics, progress, goodput, profiles, watchdog and alarms, behind `monitor.Monitor`."""
