"""How long models take: timed in turn, with what could have disturbed it."""
