"""Who may enter, and how much of the server each may use. Knows no engine."""
