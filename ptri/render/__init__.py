"""Pictures of invented people, with what is true of them: training images for the 2D network.

Read `settings` first, then `people/` (bodies, poses, clothes), `stage/` (rooms, cameras and what
stands in the way), `draw/` (OpenGL and the camera's sensor) and `truth` (joints, visibility,
boxes). `clips` puts it together for people who move before a rig, `single` for single images;
`write/` keeps them as a data set, `stream` makes them while training asks for them.
Needs the `render` extra. World: z up, metres; what is written is in mm.
"""
