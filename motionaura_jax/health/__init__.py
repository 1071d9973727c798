"""What `motionaura doctor` knows: facts about installation and machine, and what follows from them."""
