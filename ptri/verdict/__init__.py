"""May an estimated rig be trusted, and if not, why?

Read in this order: ``verdict`` (the answer as a value, and its words), ``readings`` (ways to read
left and right, and which of them a view's keypoints ask for), ``examination`` (each view held
against the others), ``figures`` (what is measured), ``judge`` (the rules that decide).
"""
