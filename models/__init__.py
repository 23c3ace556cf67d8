"""The networks: architecture, training and shipped weights. Imported by `pipeline`, imports neither it nor `dicomnode`."""
