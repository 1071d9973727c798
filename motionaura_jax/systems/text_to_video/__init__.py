"""Text to video: what a run is told (`recipe`), what it finds out itself (`resolve`), what it trains (`system`)."""
