"""Pages that need nothing but themselves: what was asked, what was found, and how to use it. No torch here."""
