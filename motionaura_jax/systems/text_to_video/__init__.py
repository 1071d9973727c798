"""Text to video: the settings of a run (`recipe`) and the system that trains (`system`)."""
