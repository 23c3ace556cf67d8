"""Virtual patients and their images.

::

    fields.py       smooth random fields, and sampling a coarse lattice on any axial grid
    shapes.py       implicit surfaces: signed distances in mm, negative inside
    tissue.py       labels, and the table of CT numbers and uptake after Lu-177 DOTATATE
    makeup.py       how one patient's tissues depart from the table
    uptake.py       textures inside organs
    lesions.py      lesions, anywhere in any anatomy
    anatomy.py      organs as layers, painted one over the other
    families.py     the families of anatomy: trunk, harmonic, stylised (each with modules of its own)
    patient.py      anatomy -> CT numbers, activity concentration and labels on a grid
    respiration.py  what breathing averages
    camera.py       a gamma camera: collimator, response, energy windows, orbit
    projector.py    activity -> projections and back, with attenuation and response: slab_course (geometry),
                    slab_steps (compiled loops), projector_cuda (the same on a card)
    scatter.py      scatter in three windows by Monte Carlo: energy_windows, forced_detection (compiled)
    osem.py         projections -> image
    acquisition.py  all of it: a patient on the camera, and his image in Bq/mL
    spect.py        activity -> a quick SPECT image in the image domain, for the demonstration and tests
    cube.py         a hot cube in a block of water, for tests of geometry and units

A new family of anatomy is a function ``(rng, texture) -> Anatomy`` and a row of `families.FAMILIES`; a new
law of texture is a function that returns the logarithm of an uptake on the lattice and a row of
`uptake.TEXTURES`. Only numpy, scipy and numba are used.
"""
