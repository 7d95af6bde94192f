"""Training of the 2D and the 3D networks, into run folders that can be resumed to the bit.

In reading order:

- run.py: what train2d.py and train3d.py do;
- engine.py: the loop over epochs and steps, for any task;
- state.py: what the engine asks of a task; what changes during a run, saved and restored;
- optimizer.py: AdamW and Muon, learning rate, averaged weights, precision;
- runlog.py: the run folder; system.py: processes, signals, random generators;
- task2d.py: the 2D network from images; orientation.py and imitation.py: two teaching aids;
- task3d.py: lifter and fusion, from generated keypoints (and solved_scenes.py, where rigs are
  solved once) or from images; losses3d.py: the losses of a step, in numbered steps;
  validation3d.py: its metrics and pictures.
"""
