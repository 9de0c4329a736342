"""Messages about what no node of a cluster can take, and the plan's count of what runs at once."""

from pathlib import Path

import pytest

from vlgenrm_ray import config, plan
from vlgenrm_ray.cluster.resources import Cluster, Node, unmet_requests
from vlgenrm_ray.cluster.scheduling import FreeNode, SchedulingMonitor, Waiting
from vlgenrm_ray.data.flow import STREAM_CPUS

RECIPES = Path(__file__).parents[2] / "jobs" / "recipes"
NODES = [
    FreeNode(host="one", resources={"CPU": (0.5, 1.0), "memory": (9.0, 9.0)}),
    FreeNode(host="two", resources={"CPU": (4.0, 16.0), "GPU": (0.0, 2.0)}),
]


class Queue:
    """A monitor over a list of waiting tasks, with its reports."""

    def __init__(self, *waiting: Waiting) -> None:
        self.waiting = list(waiting)
        self.reports: list[str] = []
        self.monitor = SchedulingMonitor(lambda: self.waiting, lambda: NODES, self.reports.append)


def task(id: str = "1", name: str = "StreamingRepartition", since: float = 100.0) -> Waiting:
    return Waiting(id=id, kind="task", name=name, resources={"CPU": 1.0}, since=since)


def test_a_task_that_waits_for_a_minute_is_named_with_need_and_free_resources() -> None:
    queue = Queue(task())
    queue.monitor.check(159.0)
    assert queue.reports == []
    queue.monitor.check(161.0)
    (report,) = queue.reports
    assert report.startswith("waiting for 61 s: task 'StreamingRepartition' needs 1 CPU; free now: ")
    assert "one 0.5 of 1 CPU, two 4 of 16 CPUs, 0 of 2 GPUs." in report
    assert "num_cpus" in report


def test_equal_tasks_are_one_report_that_is_repeated_after_ten_minutes() -> None:
    queue = Queue(task("1"), task("2", since=90.0))
    for now in (161.0, 171.0, 700.0):
        queue.monitor.check(now)
    (report,) = queue.reports
    assert "(2 of them)" in report
    assert "waiting for 71 s" in report
    queue.monitor.check(762.0)
    assert len(queue.reports) == 2


def test_something_else_that_waits_is_reported_by_itself() -> None:
    queue = Queue(task("1"))
    queue.monitor.check(161.0)
    group = Waiting(
        id="g", kind="placement group", name="workers", resources={"CPU": 2.0, "GPU": 1.0}, since=100.0, num_bundles=4
    )
    queue.waiting.append(group)
    queue.monitor.check(171.0)
    assert "placement group 'workers' needs 2 CPUs and 1 GPU on each of 4 places" in queue.reports[1]


def test_what_starts_in_time_is_never_reported() -> None:
    queue = Queue(task())
    queue.monitor.check(150.0)
    queue.waiting.clear()
    queue.monitor.check(170.0)
    assert queue.reports == []


# -- the plan --------------------------------------------------------------------------------------------------------

LAPTOP = Cluster(nodes=(Node(num_cpus=2),))
TWO_SMALL_NODES = Cluster(nodes=(Node(num_cpus=1), Node(num_cpus=1)))


def test_the_plan_counts_the_whole_cpu_that_repartition_takes_on_one_node() -> None:
    requests = plan.reward_requests(config.load(RECIPES / "shapes.yaml"))
    assert not unmet_requests(requests, LAPTOP)
    # Ray spreads the actors: half a CPU is left on each node, where no task of a whole CPU can run.
    problems = unmet_requests(requests, TWO_SMALL_NODES)
    assert [line.split("'")[1] for line in problems] == ["responses", "experts", "critiques", "evaluation"]
    assert "1 for each of 1 task beside actors that are spread over the nodes" in problems[0]
    one_actor = plan.reward_requests(config.load(RECIPES / "shapes.yaml", ("actors.num_actors=1",)))
    assert [line.split("'")[1] for line in unmet_requests(one_actor, TWO_SMALL_NODES)] == ["experts"]
    assert not unmet_requests(requests, Cluster(nodes=(Node(num_cpus=1),) * 3))


@pytest.mark.parametrize("recipe", ["shapes.yaml", "qwen2_5_vl_7b.yaml", "qwen3_vl_4b.yaml"])
def test_every_stage_that_streams_is_in_the_plan(recipe: str) -> None:
    requests = plan.reward_requests(config.load(RECIPES / recipe))
    streams = {request.stage for request in requests if request.role == "task" and request.num_cpus == STREAM_CPUS}
    expected = {"pool", "responses", "experts", "preferences", "heldout", "critiques", "selection", "evaluation"}
    assert streams == expected
