"""A report of megaselect.verify by the names of its checks."""


def outcomes(report):
    """{check: passed, warning, not checked or failed}"""
    return {check.name: str(check.outcome) for subject in report.subjects for check in subject.checks}


def details(report):
    """{check: what was compared, or the first thing that is wrong}"""
    return {check.name: check.detail for subject in report.subjects for check in subject.checks}


def failed(report):
    """The names of the checks that failed."""
    return {check.name for _, check in report.failures()}


def all_passed(report):
    """Whether each check did, without a warning."""
    return set(outcomes(report).values()) == {"passed"}
