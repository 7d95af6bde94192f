"""Cameras, rotations and points: pure functions, any batch. Read in this order:

* `rotations`, `cameras`: conventions and conversions;
* `rays`: keypoints as observations, and the mixture of inliers and outliers that every likelihood
  is made of; `triangulation`: joints from rays in closed form, and against outliers;
* `alignment`: rigs from skeletons of single views; `epipolar`: rigs by the five-point method;
* `resection`: one camera from joints that are known.
"""
