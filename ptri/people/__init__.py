"""People invented for 3D training: how they move, which cameras see them, what a detector says.

Read `draws` (every sample has random numbers of its own), then `articulation` (joint angles to
rotations to joints), `motions` (angles over time) and `bodies` (lengths, feet on the floor);
`bvh`, `mocap` and `retarget` take motion capture in their place. `rigs` draws cameras,
`detections` simulates a 2D detector (`trunk` says what a body hides), and `scenes` puts all
together into training batches.
World: z up, mm, floor at z = 0.
"""
