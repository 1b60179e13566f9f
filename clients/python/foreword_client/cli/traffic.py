"""`foreword traffic`"""

from __future__ import annotations

from typing import Annotated, Any, cast

import typer

from foreword_client import types
from foreword_client.cli import arguments, output

_NEVER = "never"
_CONDITIONS = types.RollbackRule.model_fields

RollbackIf = Annotated[
    list[str] | None,
    typer.Option(
        "--rollback-if",
        metavar="NAME[=VALUE]",
        help="Give the active version all traffic back when another one meets a condition: "
        "error_rate_above=0.05, first_token_p95_ms_above=500, total_p95_ms_above=2000, "
        "golden_fails; with min_requests=50. May be repeated. `never` removes the rule.",
        show_default=False,
    ),
]


def traffic(
    ctx: typer.Context,
    task: arguments.Task,
    shares: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[VERSION=WEIGHT]...",
            help="Weights, such as 3=90 4=10. If omitted, the current ones are shown.",
            show_default=False,
        ),
    ] = None,
    off: Annotated[
        bool, typer.Option("--off", help="Send all traffic to the active version.")
    ] = False,
    rollback_if: RollbackIf = None,
    as_json: arguments.AsJson = False,
) -> None:
    """Split a task's traffic between versions by weight, or show how they do.

    The split ends at the next activation or rollback, or when --rollback-if applies. A new split
    keeps the rule of the one before.
    """
    if off and shares:
        raise typer.BadParameter("give shares or --off, not both")
    if rollback_if and not shares:
        raise typer.BadParameter("--rollback-if belongs to a split: give shares, such as 3=90 4=10")
    weights, rule = _weights(shares or []), _rule(rollback_if or [])
    with arguments.connect(ctx) as client:
        found: types.Traffic = (
            client.set_traffic(task, weights, rollback_if=rule)
            if weights or off
            else client.traffic(task)
        )
    if as_json:
        output.show_json(found)
        return
    _show(found)
    if found.warning:
        output.warn(found.warning)


def _weights(shares: list[str]) -> dict[int, int]:
    weights: dict[int, int] = {}
    for share in shares:
        version, equals, weight = share.partition("=")
        if not (equals and version.lstrip("v").isdecimal() and weight.isdecimal()):
            raise typer.BadParameter(f"{share!r} is not VERSION=WEIGHT, such as 4=10")
        number = int(version.lstrip("v"))
        if number in weights:
            raise typer.BadParameter(f"v{number} is named twice")
        weights[number] = int(weight)
    if weights and not any(weights.values()):
        raise typer.BadParameter("at least one weight must be above 0; --off ends a split")
    return weights


def _rule(conditions: list[str]) -> types.RollbackOptions | None:
    """Parse the conditions. None: none were given; empty: `never`."""
    if not conditions or conditions == [_NEVER]:
        return {} if conditions else None
    rule: dict[str, Any] = {}
    for condition in conditions:
        name, _, value = condition.replace("-", "_").partition("=")
        if name not in _CONDITIONS or (value == "") != (name == "golden_fails"):
            raise typer.BadParameter(
                f"{condition!r} is no condition; known are {', '.join(_CONDITIONS)}"
            )
        rule[name] = _value(name, value)
    return cast(types.RollbackOptions, rule)


def _value(name: str, value: str) -> float | bool:
    if name == "golden_fails":
        return True
    try:
        return int(value) if name == "min_requests" else float(value)
    except ValueError:
        raise typer.BadParameter(f"{name} is a number, not {value!r}") from None


def _show(found: types.Traffic) -> None:
    report = found if isinstance(found, types.TrafficReport) else None
    weights = found.weights
    if weights is None:
        weights = {} if found.active_version is None else {found.active_version: 1}
    if not weights:
        output.note(f"{found.task} has no active version")
        return
    figures = {} if report is None else {one.version: one for one in report.versions}
    columns = ["", "VERSION", "WEIGHT", "SHARE"]
    if figures:
        columns += ["REQUESTS", "ERRORS", "REFUSED", "FIRST TOKEN", "TOTAL", "EVALUATION"]
    total = sum(weights.values())
    rows = [
        (
            "*" if version == found.active_version else "",
            f"v{version}",
            str(weight),
            f"{100 * weight / total:.3g} %",
            *(_figures(figures[version]) if version in figures else ()),
        )
        for version, weight in weights.items()
    ]
    output.show_table(columns, rows)
    if report is not None and figures:
        minutes = f"{report.window_s / 60:.3g} minutes"
        output.note(f"requests of the last {minutes} on this server; times are p50 and p95")
    if found.rollback_if is not None:
        output.say(f"rolls back if: {_conditions(found.rollback_if)}")
    if report is not None and report.rollback_reason:
        output.say(f"rolled back: {report.rollback_reason}")


def _figures(found: types.VersionTraffic) -> tuple[str, ...]:
    rate = "" if not found.errors else f", {100 * (found.error_rate or 0):.3g} %"
    return (
        str(found.requests),
        f"{found.errors}{rate}",
        str(found.refused),
        _times(found.first_token_ms),
        _times(found.total_ms),
        _scores(found.evaluation),
    )


def _times(found: types.Percentiles | None) -> str:
    return "-" if found is None else f"{_ms(found.p50)}, {_ms(found.p95)} ms"


def _ms(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _scores(found: types.Evaluation | None) -> str:
    if found is None:
        return "-"
    return ", ".join(f"{name} {score:.4g}" for name, score in found.scores.items())


def _conditions(rule: types.RollbackRule) -> str:
    limits = (
        (rule.error_rate_above, "error rate above {:g}"),
        (rule.first_token_p95_ms_above, "p95 to the first token above {:g} ms"),
        (rule.total_p95_ms_above, "p95 to the last token above {:g} ms"),
    )
    listed = [text.format(limit) for limit, text in limits if limit is not None]
    listed += ["a golden prompt fails"] if rule.golden_fails else []
    return f"{', or '.join(listed)} (after {rule.min_requests} requests)"
