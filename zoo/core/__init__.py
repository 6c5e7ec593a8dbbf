"""What travels through the loop and what stands in it: tokens, attention, reducers, hosts, learned files."""
