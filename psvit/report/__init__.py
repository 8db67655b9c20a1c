"""Plain data -> figures, tables and self-contained HTML pages. No torch here."""
