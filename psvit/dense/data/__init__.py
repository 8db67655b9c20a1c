"""Images and what is in them: read from folders, composed, written. No torch here."""
