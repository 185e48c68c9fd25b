"""The tasks, by name; each is imported when it is asked for."""

TASKS = {
    "criteo": "odist.tasks.criteo:CriteoTask",
    "lm": "odist.tasks.lm:LMTask",
    "imagenet": "odist.tasks.imagenet:ImageNetTask",
}
