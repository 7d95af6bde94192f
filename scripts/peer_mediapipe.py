"""MediaPipe's pose network on crops written by `benchmark.py photos` or `truth --write-crops`.

Needs an environment of its own, because MediaPipe 0.10.21 needs numpy < 2; nothing of ptri:

    python -m venv mediapipe_env && mediapipe_env/bin/pip install mediapipe==0.10.21
    mediapipe_env/bin/python scripts/peer_mediapipe.py outputs/crops --out outputs/mediapipe.json

The wheel carries the "full" model; "lite" and "heavy" are downloaded by MediaPipe when asked for.
Its person detector runs first and may find nobody, or somebody else: `--given-box` (which needs
`pip install ai-edge-litert` too) runs its pose network alone, first on the crop with a border, then
on the circle around the person that it found, as MediaPipe does from frame to frame of a video.
"""

import argparse
import json
import sys
from pathlib import Path

import cv2
import mediapipe
import numpy as np

# BlazePose's points -> COCO's names.
ROWS = {
    "nose": 0, "left_eye": 2, "right_eye": 5, "left_ear": 7, "right_ear": 8,
    "left_shoulder": 11, "right_shoulder": 12, "left_elbow": 13, "right_elbow": 14,
    "left_wrist": 15, "right_wrist": 16, "left_hip": 23, "right_hip": 24,
    "left_knee": 25, "right_knee": 26, "left_ankle": 27, "right_ankle": 28,
}  # fmt: skip
MODELS = {"lite": 0, "full": 1, "heavy": 2}
ROI_SCALE = 1.25  # of MediaPipe's graph: side of the region over the diameter of the circle


class PersonDetector:
    """Detector and pose network, as `mediapipe.solutions.pose` runs them on still images."""

    def __init__(self, args):
        self.pad = args.pad
        self.pose = mediapipe.solutions.pose.Pose(
            static_image_mode=True,
            model_complexity=MODELS[args.model],
            min_detection_confidence=args.min_confidence,
        )
        self.label = f"conf {args.min_confidence:g}" + f", border {args.pad:g}" * (args.pad > 0)

    def __call__(self, image):
        """(33, 3) px and visibility, of an RGB image; None where nobody was found."""
        border = round(self.pad * len(image))
        image = cv2.copyMakeBorder(image, *[border] * 4, cv2.BORDER_CONSTANT)
        landmarks = self.pose.process(image).pose_landmarks
        if landmarks is None:
            return None
        points = np.array([[point.x, point.y, point.visibility] for point in landmarks.landmark])
        points[:, :2] = points[:, :2] * image.shape[1::-1] - 0.5 - border
        return points


class GivenBox:
    """The pose network alone, on the region that the crop gives."""

    def __init__(self, args):
        from ai_edge_litert.interpreter import Interpreter

        folder = Path(mediapipe.__file__).parent / "modules/pose_landmark"
        path = folder / f"pose_landmark_{args.model}.tflite"
        self.interpreter = Interpreter(str(path), num_threads=1)
        self.interpreter.allocate_tensors()
        self.source = self.interpreter.get_input_details()[0]
        self.target = next(
            output for output in self.interpreter.get_output_details() if output["shape"][-1] == 195
        )
        self.passes, self.pad = args.passes, args.pad
        self.label = f"given box, border {args.pad:g}, {args.passes} pass(es)"

    def __call__(self, image):
        """(39, 3) px and visibility, of an RGB image."""
        size = self.source["shape"][1]
        side = len(image) * (1 + 2 * self.pad)
        centre, angle = np.array([len(image) - 1.0] * 2) / 2, 0.0
        for _ in range(self.passes):
            # Region to network px: both have integer coordinates at pixel centres.
            turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
            matrix = turn * size / side
            offset = (size - 1) / 2 - matrix @ centre
            region = cv2.warpAffine(image, np.c_[matrix, offset], (size, size))
            self.interpreter.set_tensor(self.source["index"], region[None].astype(np.float32) / 255)
            self.interpreter.invoke()
            raw = self.interpreter.get_tensor(self.target["index"]).reshape(39, 5)
            points = (raw[:, :2] - 0.5 - offset) @ np.linalg.inv(matrix).T
            # Points 33 and 34: the middle of the hips, and a point of the circle, above it.
            centre, top = points[33], points[34]
            side = 2 * ROI_SCALE * np.linalg.norm(top - centre)
            angle = np.pi / 2 - np.arctan2(centre[1] - top[1], top[0] - centre[0])
        return np.c_[points, 1 / (1 + np.exp(-raw[:, 3]))]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("crops", type=Path, help="folder of crops.json and its images")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--model", choices=MODELS, default="full")
    parser.add_argument("--min-confidence", type=float, default=0.5, help="of its detector")
    parser.add_argument("--pad", type=float, default=0.0, help="black border, of the crop's side")
    parser.add_argument("--given-box", action="store_true", help="without its person detector")
    parser.add_argument("--passes", type=int, default=2, help="of --given-box")
    args = parser.parse_args()
    try:
        content = json.loads((args.crops / "crops.json").read_text())
        method = GivenBox(args) if args.given_box else PersonDetector(args)
    except (OSError, ValueError, ImportError) as error:
        print(f"error: {error}; see --help", file=sys.stderr)
        return 2
    persons = {}
    for name in content["persons"]:
        image = cv2.imread(str(args.crops / f"{name}.png"))
        if image is None:
            print(f"error: {args.crops / name}.png: cannot be read", file=sys.stderr)
            return 2
        points = method(cv2.cvtColor(image, cv2.COLOR_BGR2RGB))
        persons[name] = None if points is None else points[list(ROWS.values())].round(3).tolist()
    label = f"MediaPipe {mediapipe.__version__} {args.model}, {method.label}"
    result = {**content, "method": label, "joints": list(ROWS), "persons": persons}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1))
    missed = sum(points is None for points in persons.values())
    print(f"{label}: {len(persons)} crops, nobody found in {missed}; written: {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
