"""The sections of a configuration: every setting, with its default, meaning and unit.

To add a setting, add a field with a comment to its section; nothing else is needed. A field
written with `number` is also checked against its range. Paths are strings, relative to the
working directory.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from ptri.fields import MISSING, Section, Table, number

_Rigs = Literal["h36m", "panoptic", "generated", "recording", "videos"]  # of several views
_Images = Literal["rendered", "shards", "coco", "photos"]  # of one view, for the 2D network
Kind = Literal[_Rigs, _Images]


@dataclass(frozen=True)
class RunConfig(Section):
    name: str = MISSING  # the run folder is <out>/<name>
    out: str = "runs"  # parent of the run folders
    seed: int = number(0, 0, 2**31 - 1)  # of initial weights, order, augmentation, noise
    device: str = "auto"  # "auto": the GPU where there is one; or "cpu", "cuda", "cuda:1"
    threads: int = number(0, 0)  # CPU threads of torch; 0 leaves torch's own choice


@dataclass(frozen=True)
class DataConfig(Section):
    kind: Kind = "h36m"  # samples are images in Human3.6M's or CMU Panoptic's layout, generated
    # people, keypoint files of a recording, its videos by our 2D network, or for the 2D network
    # images made on the fly (section render), shards, COCO's photographs of labelled persons, or
    # photographs without labels (for a teacher)
    root: str = "data/demo"  # folder with extra/ and processed/ (h36m), with the sequences
    # (panoptic), of a recording, of COCO's annotations/ and images (or a JSON file of persons), or
    # of photographs
    test_root: str | None = None  # the same of the test split; null: root
    mix: list[Table] = field(default_factory=list)  # what train2d.py trains on instead of the
    # above, which is tested on: sources, each a mapping of "share" (of the images, relative to the
    # others'; without: by size) and keys of this section that differ; see docs/training.md
    train_subjects: list[int] = field(default_factory=lambda: [1, 5, 6, 7, 8])  # S1, S5 to S8
    test_subjects: list[int] = field(default_factory=lambda: [9, 11])  # never in training
    train_sequences: list[str] = field(  # panoptic: of single persons
        default_factory=lambda: [
            *(f"171026_pose{number}" for number in (1, 2, 3)),
            *(f"171204_pose{number}" for number in (1, 2, 3, 4)),
        ]
    )
    test_sequences: list[str] = field(
        default_factory=lambda: ["171204_pose5", "171204_pose6"]
    )  # panoptic: never in training
    person: int | None = None  # panoptic: id of the person who counts; null: frames with several
    # people are left out
    train_every: int = number(1, 1)  # keep one frame of so many
    test_every: int = number(1, 1)  # 64 is the thinned protocol of many papers
    include_damaged: bool = True  # the S9 scenes whose 3D truth is off (Greeting, SittingDown, ...)
    image_size: int = number(256, 32, step=32)  # px, square network image
    views: Any = None  # cameras by index or name, in this order; null: all. Of panoptic by number
    # or name, or sets of them: CMU0 to CMU4
    min_views: int = number(2, 1)  # 3D training draws so many views a batch or more
    crop_scale: float = number(1.0, above=0)  # side of the square crop / longer side of the box
    min_keypoints: int = number(5, 1, 17)  # coco: persons with fewer labelled ones are left out
    workers: int = number(2, 0)  # loader processes per rank; 0 loads in the main process


@dataclass(frozen=True)
class AugmentConfig(Section):
    color: float = number(0.4, 0, 1)  # brightness, contrast, saturation: factors in 1 +- this;
    # white balance: a third of it; the hue turns too; 0: none of these
    gamma: float = number(0.0, 0, 2)  # values to a power of e^-this to e^this
    grey: float = number(0.0, 0, 1)  # chance of a grey image
    scale: float = number(0.15, 0, 0.9)  # crop side changes by a factor in 1 +- this
    shift: float = number(0.05, 0, 0.5)  # crop centre moves by up to this share of its side
    half_body: float = number(0.0, 0, 1)  # chance of a crop around upper body or legs only
    rotation_deg: float = number(10.0, 0, 180)  # roll of each view within +- this
    flip: float = number(0.0, 0, 1)  # chance of mirroring the scene (left and right swapped)
    blur: float = number(0.1, 0, 1)  # chance of blurring an image
    noise: float = number(0.1, 0, 1)  # chance of adding sensor noise
    jpeg: float = number(0.1, 0, 1)  # chance of strong JPEG compression
    low_resolution: float = number(0.0, 0, 1)  # chance of 1.3 to 5 times fewer pixels a side
    occluder: float = number(0.2, 0, 1)  # chance of one to three patches covering parts
    border: float = number(0.0, 0, 1)  # chance of blackening a side, up to 40 % of the image


@dataclass(frozen=True)
class GeneratedConfig(Section):
    """Generated people, rigs and detections (ptri/people/scenes.py: `SceneNumbers`, the rest)."""

    families: list[str] = field(  # rig families to train on, drawn with equal chance
        default_factory=lambda: [
            *("h36m_ring", "ring", "dome", "corner", "two_phones", "overhead", "random")
        ]
    )
    held_out_families: list[str] = field(default_factory=lambda: ["wall"])  # only for evaluation
    min_views: int = number(2, 1)  # each batch draws its number of views ...
    max_views: int = number(6, 1)  # ... from min_views to max_views
    mocap: str | None = None  # motion-capture file (.npz), see ptri/people/mocap.py; null: none
    mocap_share: float = number(0.5, 0, 1)  # share of people moved by it where it is given
    ordered_views: bool = False  # views in order around the person instead of at random
    pool: str | None = None  # file of scenes with solved rigs, to train the head alone on; made
    # where it is missing (ptri/training/solved_scenes.py); null: new scenes, solved, in every step
    more_pools: list[str] = field(default_factory=list)  # made before, with whatever settings
    pool_scenes: int = number(8192, 1)  # of one frame in the pool, beside clips
    pool_clips: int = number(3, 1)  # after so many batches of frames comes one of clips
    children: float = number(0.0, 0, 1)  # share of people who are 4 to 14 years old
    errors: Table = field(default_factory=dict)  # of the detections: numbers of ErrorModel in
    # ptri/people/error_model.py, or the YAML file of them that scripts/fit_errors.py writes
    more_errors: list[Table] = field(default_factory=list)  # others; batches take turns


@dataclass(frozen=True)
class ModelConfig(Section):
    backbone: str = "mobileone_s0"  # a timm name; others than MobileOne too, to teach it
    pretrained: bool = False  # ImageNet weights through timm (downloads) ...
    pretrained_file: str | None = None  # ... or from this file of a timm state dict
    plain_convolutions: bool = True  # one convolution + BatchNorm per block: 3 x faster on CPU
    head: Literal["fusion", "algebraic", "volumetric", "fixed_views_mlp"] = (
        "fusion"  # what makes joints of keypoints and cameras; the others are for ablation
    )
    fusion_samples: int = number(8, 1)  # posterior samples the joints of few frames are fused under
    sizes: Table = field(default_factory=dict)  # of the networks, where they are not the usual
    # ones: see ptri/models/sizes.py
    flip_test: bool = False  # evaluation averages the heatmaps of the mirrored image in: 2 x time


@dataclass(frozen=True)
class DetectorConfig(Section):
    name: Literal["auto", "ours", "movenet", "rtmlib"] = "auto"  # who finds keypoints in videos:
    # our 2D network, Google's MoveNet, which knows photographs, or one of rtmlib's (an extra);
    # auto: movenet
    weights: str | None = None  # file of movenet's weights, null: the shipped one; of rtmlib: an
    # ONNX file or an address, null: RTMPose-m (downloads). Those of ours are init.checkpoint_2d
    people: Literal["movenet", "rtmlib"] = "movenet"  # who finds the people in videos: MoveNet
    # multipose, or a YOLOX of rtmlib's
    people_weights: str | None = None  # of it, as weights


@dataclass(frozen=True)
class PosteriorConfig(Section):
    num_samples: int = number(512, 8)  # samples of a rig's cameras, over all iterations
    num_iterations: int = number(4, 1)  # adaptive importance sampling rounds
    num_modes: int = number(3, 1)  # local optima kept as a mixture
    bone_slack: float = number(
        0.05, above=0
    )  # relative change of a bone's length over frames; of T frames together: times T^(1/3)
    bone_definition: float = number(10.0, 0)  # mm, joint definitions against the prior's
    children: float = number(0.0, 0, 1)  # how likely the person is a child of 4 to 14 years
    max_rotation_std_deg: float = number(8.0, above=0)  # verdict: uncertain beyond this


@dataclass(frozen=True)
class TrainConfig(Section):
    epochs: int = number(10, 1)  # passes over the training set (or of steps_per_epoch)
    steps_per_epoch: int = number(0, 0)  # 0: the whole training set
    batch_size: int = number(16, 1)  # of all processes together
    image_sizes: list[int] = field(
        default_factory=list
    )  # 2D: px of the training images, spread evenly over the epochs; []: data.image_size
    optimizer: Literal["adamw", "muon"] = "adamw"  # muon: matrices and kernels by orthogonal
    # momentum, the rest by AdamW; see ptri/training/optimizer.py
    lr: float = number(1e-3, above=0)  # at the end of the warm-up; then falls along a cosine
    warmup_steps: int = number(100, 0)  # linear; at most half of the run
    ema_decay: float = number(0.999, 0, 0.999999)  # of the weights evaluated and saved; 0: none
    lifter_epochs: int = number(0, 0)  # 3D: first epochs, which train the lifter alone; where
    # these are all epochs, the fusion keeps its weights and only the lifter is validated
    lifter_batch: int = number(16, 1)  # 3D: scenes per sample of batch_size in those epochs
    lifter_views: int = number(2, 1)  # 3D: views per scene in those epochs
    new: Literal["nothing", "lifter", "head"] = "nothing"  # 3D: what init.checkpoint_3d does not
    # give; a new head may be another model.head than the file's
    fusion_samples: int = number(0, 0)  # 3D: posterior samples that a step on generated.pool fuses
    # under; 0: model.fusion_samples
    true_start: bool = False  # 3D: the posterior also starts from the truth; for a new lifter
    freeze_2d: bool = False  # 3D: the 2D network keeps its weights
    gradient_2d: float = number(1.0, 0, 1)  # 3D: factor on the gradient of the 3D losses into the
    # 2D network, beside the heatmap loss; 0: none
    max_frames: int = number(4, 1)  # 3D from keypoints: frames of a pooled scene, 2 to this
    weight_region: float = number(0.0, 0)  # 3D: weight of the pinball loss of the joints' 90 %
    # regions; other losses have fixed weights, see ptri/training/losses3d.py and task2d.py
    weight_orientation: float = number(0.0, 0)  # 2D: weight of the trunk's orientation, told by
    # coarse pixels
    imitate: Literal["features", "heatmaps"] = "features"  # 2D: of init.teacher_2d, its features of
    # all images, or its heatmaps of the joints whose truth is not known
    amp: Literal["auto", "off", "bf16", "fp16"] = "auto"  # auto: bf16 where the GPU or CPU has it
    save_every_steps: int = number(0, 0)  # besides every epoch; 0: never
    log_every_steps: int = number(10, 1)  # means over so many steps
    validate_every_epochs: int = number(1, 1)  # and after the last epoch


@dataclass(frozen=True)
class EvaluateConfig(Section):
    batch_size: int = number(16, 1)  # samples at once, no influence on results
    pictures: int = number(4, 0)  # samples drawn into TensorBoard or the output folder
    out: str = "outputs"  # infer3d.py writes into <out>/<run.name>
    joints: Literal["known", "common"] = "known"  # of data sets: those whose truth is known, or the
    # 15 that Human3.6M and Panoptic share, for weights that learned from the other one
    known_studio: bool = False  # h36m: also each frame alone with what data.train_subjects' rigs
    # say of where cameras stand; a row of its own, no unseen rig
    camera_sets: list[Any] = field(
        default_factory=list
    )  # infer3d.py evaluates each of these in turn, instead of data.views; as that takes them
    pool_frames: int = number(50, 0)  # at most so many frames of a scene or a recording, the most
    # telling, find its cameras together; 0: each frame alone only, which is for data sets


@dataclass(frozen=True)
class InitConfig(Section):
    checkpoint_2d: str | None = None  # weights of the 2D network to start from; on generated
    # keypoints, those of the network that they imitate: what is known of it counts
    teacher_2d: str | None = None  # 2D: a trained 2D network to be imitated, or, of heatmaps, the
    # name of a detector (movenet, rtmlib), see train.imitate
    checkpoint_3d: str | None = None  # weights of lifter and fusion to start from


@dataclass(frozen=True)
class RecordingConfig(Section):
    keypoints: str = "auto"  # folder of one subfolder per camera; auto: openpose, pose, keypoints
    intrinsics: str = "auto"  # file of K, dist, size per camera; auto: calibration.json and others,
    # else as none: K is not known, and the videos tell names and sizes
    cameras: Table = field(default_factory=dict)  # {camera: device}, such as {cam01: 'iPhone14,5'},
    # where no better K is known, see ptri/rig/lenses.py
    videos: str = "auto"  # folder of one video per camera; auto: videos
    joint_set: Literal["auto", "body25", "body25b", "coco17", "coco18", "halpe26", "h36m17"] = (
        "auto"  # auto: from the number and the arrangement of the points
    )
    views: list[Any] | None = None  # camera names or indices, in this order; null: all
    first_frame: int = number(0, 0)  # of the recording, counted from 0
    last_frame: int | None = None  # inclusive; null: the last one that every camera could have
    min_confidence: float = number(0.1, 0, 1)  # keypoints below it count as not seen
    noise: float = number(0.03, above=0)  # of keypoint files: standard deviation / person's height
    subject_height: float | None = None  # mm; fixes the scale instead of the body prior
    camera_distance: float | None = None  # mm between the first two views; fixes the scale
    person: Literal["auto", "largest", "moving", "box"] = "auto"  # who is followed: the largest
    # (over all frames and views), who moves most, or whom recording.boxes shows; auto: box where
    # there are such files, else largest
    people: Literal["one", "all"] = "one"  # whose keypoints find the cameras: all: everybody's whom
    # two views see; joints are given of the one who is followed
    sync: Literal["none", "auto"] = "none"  # auto: cameras that started at different moments are
    # brought in step, see ptri/rig/sync.py
    offsets: Table = field(default_factory=dict)  # {camera: frames by which what it shows comes too
    # late}, as far as they are known; 0 for the others
    poses: Literal["compare", "roughly", "exact"] = "compare"  # R and t of the camera file: what
    # is found is compared with them; they count as known roughly; or they are it (calibrated)
    poses_from: str | None = None  # a file of R and t instead, such as cameras.json of another run
    poses_std: list[float] = field(default_factory=lambda: [1.0, 30.0])  # deg and mm, of each
    # camera known roughly, unless the file says it
    # Only for data.kind=videos:
    every: int | None = number(None, 1)  # read one frame of so many; null: what is enough for the
    # cameras, 100 to 199 frames in all
    boxes: str = "auto"  # folder of <camera>.csv for one camera or more, where the person is, see
    # ptri/recordings/boxes.py; auto: the folder boxes where there is one
    reuse: str | None = None  # detections.h5 of an earlier run, instead of detecting again
