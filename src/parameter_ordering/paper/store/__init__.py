"""Results on disk, under keys that name everything they depend on."""
