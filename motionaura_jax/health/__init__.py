"""Checks of `motionaura doctor`: facts about installation and machine, and the findings that follow."""
