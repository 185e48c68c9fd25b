"""Where soft targets come from, by name."""

TEACHERS = {
    "none": "odist.teachers.base:NoTeacher",
    "constant": "odist.teachers.constant:Constant",
    "fixed": "odist.teachers.fixed:Fixed",
    "peers": "odist.teachers.peers:Peers",
}
