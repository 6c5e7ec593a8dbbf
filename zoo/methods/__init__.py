"""Our methods of reduction; `baselines` has those of others."""
