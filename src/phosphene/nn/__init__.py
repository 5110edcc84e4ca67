"""Building blocks of the networks: spectral layers, voxel patches, residual blocks, readouts, and what they cost."""
