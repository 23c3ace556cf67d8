"""What a network learns from, and how well it has learnt.

::

    example.py     one patient: SPECT, density, DVK and the true dose rate, in memory and on disk
    scene.py       what is true of a patient, drawn or brought by a hospital
    generate.py    patient -> SPECT -> DVK -> Monte Carlo truth: one example
    facts.py       what manifest and card state of training, read from what was made
    recipe.py      generate, train, evaluate, publish: stages that can be interrupted
    metrics.py     the paper's metrics, of one map in one VOI
    evaluation.py  every method on every patient -> results.py (kept as JSON)
    comparison.py  reductions against DVK and Monte Carlo, p values, where a method is worse
    paper.py       what the paper found, and what is asked of weights
    report.py      Markdown and model cards; figures.py, figures_sheet.py: pictures   (matplotlib, Pillow)
    foreign.py     truth, SPECT and VOIs of others; nifti.py                          (SimpleITK)
    phantom.py     a diagnostic PET/CT as a virtual patient; pet_ct.py reads it       (pydicom, SimpleITK)

What training needs imports with numpy, scipy, torch and numba alone.
"""
