import json

from vlgenrm_ray.policy.course import Course
from vlgenrm_ray.policy.guards import Evaluation, FailureRule, HackingRule, SightRule


def test_an_evaluation_has_the_mean_reward_of_the_steps_since_the_last() -> None:
    course = Course()
    course.evaluation(0, held_out=0.4, reward=0.3, sight=None)
    for reward in (0.5, None, 0.7):
        course.step(reward, {"ok": 8})
    assert course.training_reward == 0.6
    course.evaluation(3, held_out=0.5, reward=0.9, sight=None)
    assert course.training_reward is None
    assert course.evaluations == [
        Evaluation(step=0, reward=0.3, held_out=0.4),
        Evaluation(step=3, reward=0.6, held_out=0.5),
    ]


def test_without_any_reward_the_held_out_measure_stands_alone() -> None:
    course = Course()
    course.evaluation(0, held_out=0.4, reward=None, sight=None)
    assert course.evaluations == [Evaluation(step=0, reward=0.4, held_out=0.4)]


def test_what_a_checkpoint_keeps_gives_the_same_course() -> None:
    course = Course()
    course.evaluation(0, held_out=0.4, reward=0.3, sight=0.2)
    for step in range(5):
        course.step(0.1 * step, {"ok": step, "timeout": 1})
    again = Course.of(json.loads(json.dumps(course.kept(5))))
    assert again == course
    assert Course.of(course.kept(2)).statuses == course.statuses[-2:]


def test_its_rules_are_asked_of_all_it_knows() -> None:
    course = Course()
    failures = FailureRule(window=2, max_share=0.25, min_samples=8)
    course.step(0.5, {"ok": 8})
    assert course.failing(failures) is None
    course.step(None, {"timeout": 8})
    assert "8 timeout" in (course.failing(failures) or "")
    hacking = HackingRule(window=1, min_rise=0.1, min_fall=0.1)
    course.evaluation(2, held_out=0.8, reward=0.5, sight=None)
    assert course.hacking(hacking) is None
    course.step(0.9, {"ok": 8})
    course.evaluation(3, held_out=0.5, reward=0.5, sight=None)
    assert "since step 2" in (course.hacking(hacking) or "")
    blind = SightRule(window=1, min_rise=0.1, floor=0.05)
    assert course.blind(blind) is None
    for step, reward, sight in ((4, 0.5, 0.3), (5, 0.9, 0.01)):
        course.step(reward, {"ok": 8})
        course.evaluation(step, held_out=0.5, reward=0.5, sight=sight)
    assert "since step 4" in (course.blind(blind) or "")
