"""The rig posterior: a weighted distribution over the poses of the cameras. Read in this order:

* `body`: what is known of bones beforehand;
* `starts`: candidate rigs, from lifted skeletons and by classical means;
* `prior`: what is known of cameras beforehand; `motion`: how they move; `equations`: cost and
  normal equations of cameras, joints, bones and biases; `adjust`: robust bundle adjustment;
* `clocks`: one step of them together with views' clocks;
* `limbs`: limbs that are turned over, which adjustment does not turn back;
* `noise`, `tails`: the noise's scale, the biases, how heavy the tails are;
* `optima`: from candidates to the best optima of the joint density; `expansion`: it around them;
  `density`: the cameras' density, with joints, body and biases integrated out;
* `modes`: all of this in order: the cameras' modes with their Laplace covariances;
* `student_t`: the proposal; `rows`: samples packed by mode; `sampling`: adaptive importance
  sampling;
* `width`: how much wider errors that go together make it; `leave_one_out`: how far each view turns
  when it is fitted to the others; `widened`: samples moved apart as both ask for;
* `moments`: what is asked of samples; `pose_loss`: of the true cameras, for training.

Adjustment and expansion compute in float64, the densities of samples in float32, which differ from
those in float64 by thousandths of a nat.
"""
