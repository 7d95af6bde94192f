"""Configuration: precedence, and errors that name the key and how to mend it."""

import dataclasses
import inspect
import re

import pytest

from ptri import config
from ptri.errors import UserError
from ptri.models.sizes import sizes_of
from ptri.people.scenes import errors_of
from ptri.render.settings import RenderConfig


@pytest.fixture
def write(tmp_path):
    def write_yaml(text):
        path = tmp_path / "experiment.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write_yaml


def message(path, *overrides):
    with pytest.raises(UserError) as caught:
        config.load(path, overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_later_sources_win(write):
    path = write("run: {name: a}\ntrain: {lr: 1e-2, epochs: 4}\ndata:\n")
    settings = config.load(path, ["train.epochs=7", "data.views=[2, 0]"])
    assert (settings.run.name, settings.train.lr, settings.train.epochs) == ("a", 0.01, 7)
    assert settings.data.views == [2, 0]
    assert settings.posterior == config.PosteriorConfig()
    assert config.load(path, ["train.epochs=7", "train.epochs=8"]).train.epochs == 8


def test_yaml_round_trip(write):
    settings = config.load(None, ["run.name=b", "data.views=[1]", "init.checkpoint_2d=a b.pt"])
    assert config.load(write(config.to_yaml(settings))) == settings
    assert config.from_dicts([("checkpoint: ", config.to_dict(settings))]) == settings


def test_a_value_asked_for_is_not_the_default(write):
    path = write("run: {name: a}\ndata:\n  root: ???\n")
    assert "data.root: no value" in message(path)
    assert config.load(path, ["data.root=mine"]).data.root == "mine"
    again = ["data.root=mine", "data.root=???"]
    assert "data.root: no value" in message(path, *again)


def test_frozen():
    settings = config.load(None, ["run.name=b"])
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.train.lr = 1.0
    assert config.replace(settings, train__lr=0.5, run__seed=3).train.lr == 0.5
    assert settings.train.lr != 0.5
    with pytest.raises(UserError, match=r"train\.lr"):
        config.replace(settings, train__lr=-1.0)


NAMED = "run: {name: a}\n"


@pytest.mark.parametrize("text, overrides, expected", [
    # a key that is misspelt or in the wrong place
    (NAMED + "train: {epocs: 3}", [], ["experiment.yaml: ", "'train.epocs'", "'train.epochs'"]),
    (NAMED, ["train.epocs=1"], ["command line: ", "'train.epochs'"]),
    (NAMED, ["data.lr=1"], ["'train.lr'"]),
    ("trian: {lr: 1}", [], ["'train'"]),
    ("batch_size: 3", [], ["'train.batch_size' or 'evaluate.batch_size'"]),
    # a value of the wrong kind or out of range: the source of the value is named
    (NAMED + "train: {lr: fast}", [], ["experiment.yaml: train.lr"]),
    (NAMED + "train: {lr: -1}", ["train.epochs=2"], ["experiment.yaml: train.lr"]),
    (NAMED + "train: {lr: 0.1}", ["train.lr=-1"], ["command line: train.lr"]),
    (NAMED + "train: {lr: .nan}", [], ["experiment.yaml: train.lr"]),
    (NAMED + "posterior: {children: false}", [], ["experiment.yaml: posterior.children"]),
    (NAMED + "train: {batch_size: 2.5}", [], ["experiment.yaml: train.batch_size"]),
    (NAMED + "train: {batch_size: null}", [], ["experiment.yaml: train.batch_size"]),
    (NAMED + "train: {batch_size: 0}", [], ["experiment.yaml: train.batch_size"]),
    (NAMED + "data: {kind: h37m}", [], ["experiment.yaml: data.kind"]),
    (NAMED + "data: {test_subjects: 3}", [], ["experiment.yaml: data.test_subjects"]),
    (NAMED + "data: {test_subjects: [a]}", [], ["experiment.yaml: data.test_subjects"]),
    (NAMED, ["data.cameras=CMU1"], ["command line: data.cameras: now data.views"]),
    (NAMED, ["data.image_size=100"], ["command line: data.image_size", "a multiple of 32"]),
    (NAMED, ["data.include_damaged=bf16"], ["command line: data.include_damaged"]),
    (NAMED + "data: {include_damaged: perhaps}", [], ["experiment.yaml: data.include_damaged"]),
    (NAMED + "data: 3", [], ["experiment.yaml: data"]),
    # none where one is needed
    ("train: {lr: 1}", [], ["run.name: no value"]),
    ("", [], ["run.name: no value"]),
    # no configuration
    ("- 1", [], ["experiment.yaml"]),
    ("a: [", [], ["experiment.yaml"]),
    ("run: {name: a, name: b}", [], ["experiment.yaml", "twice"]),
    ("\x00", [], ["experiment.yaml"]),
    *((NAMED, [text], [repr(text)])
      for text in ("train.lr", "lr=3", "train=3", "train..lr=3", "train.lr=[1")),
])  # fmt: skip
def test_mistakes_say_where_and_what(write, text, overrides, expected):
    said = message(write(text), *overrides)
    assert all(words in said for words in expected), said


def test_nothing_is_suggested_where_nothing_is_near(write, tmp_path):
    assert "did you mean" not in message(write("qqqq: {lr: 1}"))
    assert "no such" in message(tmp_path / "nowhere.yaml")
    assert "cannot be read" in message(tmp_path)


def test_every_option_is_explained():
    """Each field has a comment: the configuration is its own manual."""
    for name, section in {**config.SECTIONS, "render": RenderConfig}.items():
        source = inspect.getsource(section)
        texts = dict(re.findall(r"^    (\w+): (.*(?:\n        .*|\n    \).*)*)", source, re.M))
        for item in dataclasses.fields(section):
            assert "#" in texts[item.name], f"{name}.{item.name} has no comment"


def test_off_is_a_word(write):
    assert config.load(write(NAMED + "train:\n  amp: off\n")).train.amp == "off"
    assert config.load(write(NAMED), ["train.amp=off"]).train.amp == "off"


def test_an_old_name_says_what_became_of_it():
    now = config.load(None, ["run.name=x"])
    for name, told in config.RETIRED.items():
        said = message(None, "run.name=x", f"{name}=1")
        assert said.startswith(f"command line: {name}: now ") and told in said
        section, key = name.split(".")
        assert not hasattr(getattr(now, section), key)


def test_tables_are_keys_or_the_file_that_holds_them(write, tmp_path):
    """Their owners check them; here keys go over a file's, and a file takes all keys' place."""
    (tmp_path / "errors.yaml").write_text("noise: 1e-2\nfault_s: 3\n")
    file = f"generated.errors={tmp_path / 'errors.yaml'}"
    path = write("run: {name: a}\ngenerated:\n  errors: {noise: 0.5}\nrender: {people: 3}\n")
    changed = config.load(path, ["generated.errors.fault_s=2"])
    assert changed.generated.errors == {"noise": 0.5, "fault_s": 2}
    read = config.load(path, [file, "generated.errors.fault_s=2", "render.size=64"])
    assert errors_of(read.generated).noise == 0.01 and errors_of(read.generated).fault_s == 2
    assert read.render == {"people": 3, "size": 64}
    assert config.load(write(config.to_yaml(read))) == read  # files are resolved
    assert "none.yaml: no such" in message(path, "generated.errors=none.yaml")
    told = "generated.errors: 3; expected a section or a file"
    assert told in message(path, "generated.errors=3")
    for text in ("{lifter_width: wide}", "{width: 3}"):
        with pytest.raises(UserError, match=r"model\.sizes"):
            sizes_of(config.load(path, [f"model.sizes={text}"]).model)
