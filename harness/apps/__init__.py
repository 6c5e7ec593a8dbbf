"""What users do with towers: choose, embed, search, push, check."""
