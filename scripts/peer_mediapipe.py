"""MediaPipe's pose network on crops written by `benchmark.py photos --write-crops`.

Needs an environment of its own, because MediaPipe 0.10.21 needs numpy < 2; nothing of ptri:

    python -m venv mediapipe_env && mediapipe_env/bin/pip install mediapipe==0.10.21
    mediapipe_env/bin/python scripts/peer_mediapipe.py outputs/crops --out outputs/mediapipe.json

The wheel carries the "full" model; "lite" and "heavy" are downloaded by MediaPipe when asked for.
Its person detector runs first and may find nobody: such crops count as missed.
"""

import argparse
import json
import sys
from pathlib import Path

import cv2
import mediapipe
import numpy as np

# BlazePose's 33 points -> COCO's names.
ROWS = {
    "nose": 0, "left_eye": 2, "right_eye": 5, "left_ear": 7, "right_ear": 8,
    "left_shoulder": 11, "right_shoulder": 12, "left_elbow": 13, "right_elbow": 14,
    "left_wrist": 15, "right_wrist": 16, "left_hip": 23, "right_hip": 24,
    "left_knee": 25, "right_knee": 26, "left_ankle": 27, "right_ankle": 28,
}  # fmt: skip
MODELS = {"lite": 0, "full": 1, "heavy": 2}


def keypoints(pose, image, pad):
    """(17, 2) px of the image, ROWS, as lists; None where nobody was found."""
    border = round(pad * len(image))
    image = cv2.copyMakeBorder(image, *[border] * 4, cv2.BORDER_CONSTANT)
    found = pose.process(cv2.cvtColor(image, cv2.COLOR_BGR2RGB)).pose_landmarks
    if found is None:
        return None
    points = np.array([[point.x, point.y] for point in found.landmark])[list(ROWS.values())]
    return (points * image.shape[1::-1] - 0.5 - border).round(2).tolist()


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("crops", type=Path, help="folder of crops.json and its images")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--model", choices=MODELS, default="full")
    parser.add_argument("--min-confidence", type=float, default=0.5, help="of its detector")
    parser.add_argument("--pad", type=float, default=0.0, help="black border, of the crop's side")
    args = parser.parse_args()
    try:
        content = json.loads((args.crops / "crops.json").read_text())
    except (OSError, ValueError) as error:
        print(f"error: {args.crops}: no crops ({error}); see --help", file=sys.stderr)
        return 2
    persons = {}
    with mediapipe.solutions.pose.Pose(
        static_image_mode=True,
        model_complexity=MODELS[args.model],
        min_detection_confidence=args.min_confidence,
    ) as pose:
        for name in content["persons"]:
            image = cv2.imread(str(args.crops / f"{name}.png"))
            if image is None:
                print(f"error: {args.crops / name}.png: cannot be read", file=sys.stderr)
                return 2
            persons[name] = keypoints(pose, image, args.pad)
    method = f"MediaPipe {mediapipe.__version__} {args.model}"
    method += f" conf {args.min_confidence:g}, border {args.pad:g}"
    result = {**content, "method": method, "joints": list(ROWS), "persons": persons}
    args.out.write_text(json.dumps(result, indent=1))
    missed = sum(points is None for points in persons.values())
    print(f"{method}: {len(persons)} crops, nobody found in {missed}; written: {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
