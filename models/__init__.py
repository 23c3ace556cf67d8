"""The networks: architecture, training, shipped weights. Imports neither `pipeline` nor `dicomnode`."""
