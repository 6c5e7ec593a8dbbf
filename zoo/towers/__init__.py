"""Families of towers, one a file: how a block is taken apart, how images become tokens, what pools them."""
