"""Who is followed among several people: tracklets within a view, agreement between views."""

import numpy as np
import pytest
from crowd_fixture import make_crowd

from ptri.errors import UserError
from ptri.recordings.agreement import find_bodies, sights_of
from ptri.recordings.candidates import Candidates
from ptri.recordings.subject import follow
from ptri.recordings.tracklets import link

SHAPE = np.random.default_rng(2).uniform(0, 1, (25, 2))
NAMES = list("abcd")


def sightings(frames):
    """Of one view: people (x, size) in each frame, standing at y = 100."""
    row = [f for f, people in enumerate(frames) for _ in people]
    xy = np.array([[x, 100] + size * SHAPE for people in frames for x, size in people])
    N = len(row)
    sure, none = np.full((N, 25), 0.9), np.full((N, 25, 2, 2), np.nan)
    rest = none, sure, np.full((N, 4), np.nan), np.full((N, 6), np.nan), np.zeros(N, bool)
    return Candidates(np.array(row), np.zeros(N, int), xy, *rest)


def linked(frames, fps=30.0, every=1):
    return link(sightings(frames), np.arange(len(frames)) * every / fps).tolist()


def test_a_walking_person_is_one_tracklet():
    walk = [[(100 + 7 * f, 200)] for f in range(30)]  # 1 size a second
    assert linked(walk) == [0] * 30
    assert linked(walk[::10], every=10) == [0] * 3
    jump = [[(100 + 200 * f, 200)] for f in range(4)]
    assert linked(jump) == [0, 1, 2, 3]  # so far in 1/30 s no person goes
    assert linked(jump, every=20) == [0] * 4
    late = [*walk[:5], *[[]] * 20, *walk[25:]]
    assert linked(late) == [0] * 5 + [1] * 5 and linked([*walk[:5], [], *walk[6:]]) == [0] * 29


def test_two_who_cross_are_four_tracklets():
    """They come from both sides and pass, and nothing tells who went on in which direction."""
    frames = [[(100 + 10 * f, 200), (500 - 10 * f, 200)] for f in range(41)]
    labels = np.reshape(linked(frames), (-1, 2))
    assert len(set(labels[:15].ravel()) & set(labels[-15:].ravel())) == 0
    assert len(set(labels[:15, 0])) == len(set(labels[:15, 1])) == 1
    # The control: with half of a size between them in depth they are told apart all the time.
    apart = [[(100 + 10 * f, 200), (500 - 10 * f, 90)] for f in range(41)]
    assert len(set(linked(apart))) == 2


def test_clothes_tell_who_crosses():
    """The same crossing: red trousers go on in one direction, and grey ones in the other."""
    frames = [[(100 + 10 * f, 200), (500 - 10 * f, 160)] for f in range(41)]
    people = sightings(frames)
    noise = np.random.default_rng(0).normal(0, 8, (82, 6))
    colours = np.where(np.arange(82)[:, None] % 2, 90.0, [90, 90, 90, 40, 40, 190]) + noise
    times = np.arange(41) / 30
    labels = link(people._replace(colours=colours), times).reshape(-1, 2)
    assert (labels == labels[0]).all() and labels[0, 0] != labels[0, 1]
    alike = link(people._replace(colours=90 + noise), times).reshape(-1, 2)  # the control
    assert not set(alike[:15].ravel()) & set(alike[-15:].ravel())


def test_who_is_lost_beside_another_is_not_found_again():
    """A person goes behind one who stands: who comes out again, within 0.2 s, may be anybody."""
    frames = [[(100, 200), (240 - 6 * f, 200)] for f in range(20)]
    frames += [[(100, 200)] for _ in range(5)]
    frames += [[(100, 200), (126 + 6 * f, 200)] for f in range(20)]
    labels = linked(frames)
    assert len(set(labels)) == 3 and len(set(labels[:40:2])) == 1
    assert labels[0] == labels[42] == labels[-2] and labels[1] != labels[-1]
    # The control: lost where nobody is near, the same person goes on.
    alone = [people[1:] for people in frames]
    assert len(set(linked(alone))) == 1


def test_doubles_are_one_person():
    frames = [[(100 + 3 * f, 200), (102 + 3 * f, 203)] for f in range(10)]
    labels = np.array(linked(frames))
    assert (labels == -1).sum() == 10 and len(set(labels[labels >= 0])) == 1


def right(crowd, person):
    """Shares of the sightings that are the main person's, and of that one's that are followed."""
    followed = follow(crowd.candidates, crowd.times, crowd.K, NAMES, person)
    there = followed.sighting >= 0
    who = np.bincount(crowd.who[followed.sighting[there]])
    return who.argmax(), who.max() / there.sum(), who.max() / (crowd.who == who.argmax()).sum()


@pytest.mark.parametrize(
    ("num_people", "seed", "fps", "apart", "least"),
    [(2, 0, 10.0, 1200, 0.9), (3, 1, 10.0, 900, 0.9), (2, 0, 5.0, 600, 0.4)],
)
def test_the_same_person_is_followed_in_all_views(num_people, seed, fps, apart, least):
    """Of 10 crowds of each kind: purity 0.99 to 1; shares 0.9 to 1, at 5 a second 0.4 to 1."""
    _, purity, share = right(make_crowd(seed, num_people, 40, fps, apart), "largest")
    assert purity > 0.98 and share > least


def test_largest_moving_and_box():
    crowd = make_crowd(0, 2)
    candidates, who = crowd.candidates, crowd.who
    largest, moving = right(crowd, "largest")[0], right(crowd, "moving")[0]
    sights = sights_of(candidates, link(candidates, crowd.times), crowd.K)
    first, second = find_bodies(sights)[:2]
    sizes = [sights.weight[body.tracklets].sum() for body in (first, second)]
    persons = [
        np.bincount(who[np.concatenate([sights.members[k] for k in body.tracklets])]).argmax()
        for body in (first, second)
    ]
    assert largest == persons[int(np.argmax(sizes))]
    # The one who stands still, others' motion frozen, is not who moves most.
    still = candidates.xy.copy()
    for view in range(4):
        own = (who == moving) & (candidates.view == view)
        still[own] = np.nanmedian(still[own], 0)
    frozen = crowd._replace(candidates=candidates._replace(xy=still))
    assert right(frozen, "moving")[0] == 1 - moving
    person = 1 - largest  # one box in one frame of one view is enough
    given = (who == person) & (candidates.view == 1) & (candidates.row == 7)
    boxed = crowd._replace(candidates=candidates._replace(given=given))
    found, purity, share = right(boxed, "auto")
    assert found == person and purity > 0.99 and share > 0.9


def test_boxes_of_two_people_are_refused():
    crowd = make_crowd(0, 2)
    candidates, who = crowd.candidates, crowd.who
    given = ((who == 0) & (candidates.view == 0)) | ((who == 1) & (candidates.view == 2))
    candidates = candidates._replace(given=given)
    with pytest.raises(
        UserError, match=r"recording.boxes: \w.csv and \w.csv show different people"
    ):
        follow(candidates, crowd.times, crowd.K, NAMES)


def test_who_leaves_is_not_replaced():
    """In the second half the followed person is gone from view 0, where the other stays."""
    crowd = make_crowd(1, 2)
    subject = right(crowd, "largest")[0]
    candidates, who = crowd.candidates, crowd.who
    gone = (who == subject) & (candidates.view == 0) & (candidates.row >= 20)
    kept = np.flatnonzero(~gone)
    followed = follow(candidates.rows(kept), crowd.times, crowd.K, NAMES, "largest")
    there = followed.sighting >= 0
    assert (who[kept][followed.sighting[there]] == subject).mean() > 0.99
    assert not there[21:, 0].any() and there[:20, 0].mean() > 0.9
    assert "a: in 50 % of the frames" in followed.words.replace("49 %", "50 %")


def without(crowd, gone):
    """The crowd without some of its sightings."""
    kept = np.flatnonzero(~gone)
    return crowd._replace(candidates=crowd.candidates.rows(kept), who=crowd.who[kept])


def test_who_is_lost_by_all_views_and_comes_back():
    """For a second nobody is seen; of two people only their clothes tell who is who afterwards."""
    row = make_crowd(3, 1).candidates.row
    alone = without(make_crowd(3, 1), (row >= 15) & (row < 25))
    words = follow(alone.candidates, alone.times, alone.K, NAMES).words
    assert right(alone, "largest")[2] > 0.95 and "found again 1 times" in words
    crowd = make_crowd(0, 2)
    row = crowd.candidates.row
    both = without(crowd, (row >= 15) & (row < 25))
    _, purity, share = right(both, "largest")
    assert purity > 0.99 and share < 0.6  # one piece only
    clothes = np.array([[90.0] * 6, [90, 90, 90, 40, 40, 190]])[both.who]
    noise = np.random.default_rng(0).normal(0, 8, clothes.shape)
    dressed = both._replace(candidates=both.candidates._replace(colours=clothes + noise))
    _, purity, share = right(dressed, "largest")
    assert purity > 0.99 and share > 0.9
    # A bystander who was there all the time is not who comes back.
    subject = right(crowd, "largest")[0]
    gone = (crowd.who == subject) & (row >= 15) & (row < 25)
    _, purity, share = right(without(crowd, gone), "largest")
    assert purity > 0.99 and share > 0.9


def test_words_say_how_sure():
    crowd = make_crowd(0, 2)
    words = follow(crowd.candidates, crowd.times, crowd.K, NAMES, "largest").words
    assert words.startswith("followed: the person seen largest, of 2 whom two views")
    assert words.count("next person there") == 4 and "UNSURE" not in words
    one = crowd.candidates.rows(np.flatnonzero(crowd.candidates.row < 3))  # three frames say little
    words = follow(one, crowd.times[:3], crowd.K, NAMES, "largest").words
    assert "no other view tells whether it is the same person" in words
    assert "of 0 whom two views or more see" in words
