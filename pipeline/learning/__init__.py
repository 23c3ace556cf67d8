"""What a network learns from, and how well it has learnt.

::

    example.py     one patient: SPECT, density, DVK and the true dose rate, in memory and on disk
    scene.py       what is true of a patient, drawn or brought by a hospital
    generate.py    patient -> SPECT -> DVK -> Monte Carlo truth: one example
    recipe.py      generate, train, evaluate, publish: stages that can be interrupted

numpy, scipy, torch and numba suffice.
"""
