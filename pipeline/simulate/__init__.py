"""Virtual patients and their images.

::

    fields.py    smooth random fields, and sampling a coarse lattice on any axial grid
    shapes.py    implicit surfaces: signed distances in mm, negative inside
    anatomy.py   one family of anatomy: organs as layers, painted one over the other
    uptake.py    what each organ holds after Lu-177 DOTATATE, and its texture
    patient.py   anatomy -> CT numbers, activity concentration and labels on a grid
    spect.py     activity -> a SPECT image (a stand-in in the image domain)
    cube.py      a hot cube in a block of water, for tests of geometry and units

A new family of anatomy is a function ``rng -> Anatomy``; a new law of texture is a function that
returns the logarithm of an uptake on the lattice. Only numpy and scipy are used.
"""
