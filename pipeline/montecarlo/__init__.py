"""Monte Carlo transport of the radiations of a radionuclide in voxels."""
