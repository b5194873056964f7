"""The table of a dataset's utterances against a schema: one row an utterance, one reason a failure case.

The schema is pandera's. It is built from the configuration, and each of its checks bears the name of the reason that it
gives; so the rows' findings are the schema's failure cases, in words.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from kubevox.config import TaskConfig, ValidateConfig
from kubevox.data.dataset import Utterance
from kubevox.data.validation.checks import Finding, in_order
from kubevox.data.validation.quality import SILENCE_FLOOR_DBFS, Measured

if TYPE_CHECKING:
    import pandas as pd
    import pandera.pandas as pa

__all__ = ["examine", "labels_of", "repeated"]

# Half a millisecond is more than rounding and less than a pitch period.
_DURATION_TOLERANCE_S = 5e-4
_MEASURES = (
    *("rms_dbfs", "clipped_share", "silence_ratio", "snr_db", "dc_offset", "bandwidth_hz"),
    *("speech_ratio", "stoi", "pesq", "si_sdr_db"),
)
# What a column's own conditions, which pandera names, are called as reasons.
_CONDITIONS = {
    ("duration_s", "not_nullable"): "duration_missing",
    ("sample_rate", "not_nullable"): "sample_rate_missing",
    ("source_sample_rate", "not_nullable"): "sample_rate_missing",
    ("source_bytes", "not_nullable"): "size_missing",
    ("source_id", "not_nullable"): "name_missing",
    ("source_id", "field_uniqueness"): "name_not_unique",
}

_Subject = tuple[Utterance, Measured | None]


def examine(
    utterances: Sequence[Utterance], measured: Sequence[Measured | None], task: TaskConfig, config: ValidateConfig
) -> list[list[Finding]]:
    """Everything that speaks against each utterance, but for its being a copy of another.

    Args:
        utterances: their metadata.
        measured: of their stored audio, in the same order; None where that does not decode.
        task: the label set, and how raw labels map onto it.
        config: the limits. What its gates ignore is not looked for.

    Returns:
        For each utterance its findings, none for a good one.
    """
    import pandera.pandas as pa

    if not utterances:
        return []
    found: list[list[Finding]] = [[] for _ in utterances]
    try:
        _schema(task, config).validate(_frame(utterances, measured, task), lazy=True, inplace=True)
    except pa.errors.SchemaErrors as failed:
        cases = failed.failure_cases
        seen = set()
        for column, check, place in zip(cases["column"], cases["check"], cases["index"], strict=True):
            reason = _CONDITIONS.get((column, check), check)
            if (reason, place) in seen:
                continue
            seen.add((reason, place))
            detail = _DETAILS[reason]((utterances[place], measured[place]), task, config)
            found[place].append(Finding(reason, detail))
    return [in_order(findings) for findings in found]


def labels_of(utterances: Sequence[Utterance], task: TaskConfig) -> list[str | None]:
    """Each utterance's label in the task; None where the task leaves the raw label out, or does not know it."""
    return [_label(utterance, task)[1] for utterance in utterances]


def repeated(utterances: Sequence[Utterance], column: str) -> int:
    """How many utterances share their value of a column, which need not be unique, with another."""
    import pandas as pd
    import pandera.pandas as pa

    frame = pd.DataFrame({column: pd.Series([getattr(u, column) for u in utterances], dtype=object)})
    schema = pa.DataFrameSchema({column: pa.Column(nullable=True, unique=True, report_duplicates="all")})
    try:
        schema.validate(frame.dropna(), lazy=True)
    except pa.errors.SchemaErrors as failed:
        return len(failed.failure_cases)
    return 0


def _schema(task: TaskConfig, config: ValidateConfig) -> pa.DataFrameSchema:
    import pandera.pandas as pa

    def check(reason: str, holds: Callable[[pd.Series], pd.Series]) -> list[pa.Check]:
        ignored = getattr(config.gates, reason, "quarantine") == "ignore"
        return [] if ignored else [pa.Check(holds, name=reason, error=reason, ignore_na=True)]

    def number(*checks: pa.Check) -> pa.Column:
        return pa.Column(float, checks=list(checks), nullable=True)

    rate = pa.Column(checks=check("sample_rate_unknown", lambda rates: rates.isin(config.sample_rates)))
    return pa.DataFrameSchema(
        {
            "source_id": pa.Column(unique=True, report_duplicates="all"),
            "duration_s": pa.Column(checks=check("duration_not_numeric", lambda values: values.map(_is_number))),
            "seconds": number(
                *check("duration_too_short", lambda seconds: seconds >= config.min_duration_s),
                *check("duration_too_long", lambda seconds: seconds <= config.max_duration_s),
            ),
            "seconds_off": number(*check("duration_wrong", lambda seconds: seconds <= _DURATION_TOLERANCE_S)),
            "sample_rate": rate,
            "source_sample_rate": rate,
            "source_bytes": pa.Column(checks=check("size_not_integer", lambda values: values.map(_is_integer))),
            "bytes": number(
                *check("source_too_small", lambda sizes: sizes >= config.min_bytes),
                *check("source_too_large", lambda sizes: sizes <= config.max_bytes),
            ),
            "label": pa.Column(
                checks=[
                    *check("label_missing", lambda labels: labels != "missing"),
                    *check("label_unknown", lambda labels: labels != "unknown"),
                ]
            ),
            "decodes": pa.Column(bool, checks=check("undecodable", lambda decodes: decodes)),
            "same_content": pa.Column(bool, checks=check("content_changed", lambda same: same)),
            "rms_dbfs": number(*check("silent", lambda levels: levels >= config.silence_dbfs)),
            "clipped_share": number(*check("clipped", lambda shares: shares <= config.clipped_share)),
            "snr_db": number(*check("low_snr", lambda ratios: ratios >= config.min_snr_db)),
            "silence_ratio": number(*check("mostly_silent", lambda ratios: ratios <= config.max_silence_ratio)),
            "dc_offset": number(*check("dc_offset", lambda offsets: offsets <= config.max_dc_offset)),
            "bandwidth_hz": number(*check("narrow_band", lambda hertz: hertz >= config.min_bandwidth_hz)),
            "speech_ratio": number(*check("no_speech", lambda ratios: ratios >= config.min_speech_ratio)),
            "stoi": number(*check("low_stoi", lambda scores: scores >= config.min_stoi)),
            "pesq": number(*check("low_pesq", lambda scores: scores >= config.min_pesq)),
            "si_sdr_db": number(*check("low_si_sdr", lambda ratios: ratios >= config.min_si_sdr_db)),
        },
        checks=pa.Check(lambda frame: ~frame.duplicated("row", keep=False), name="row_repeated", error="row_repeated"),
    )


def _frame(utterances: Sequence[Utterance], measured: Sequence[Measured | None], task: TaskConfig) -> pd.DataFrame:
    """The utterances as columns: what the dataset says as it says it, and numbers where it says numbers."""
    import pandas as pd

    def said(name: str) -> pd.Series:
        return pd.Series([_said(getattr(utterance, name)) for utterance in utterances], dtype=object)

    durations = said("duration_s")
    columns: dict[str, Any] = {
        "row": [hash(utterance) for utterance in utterances],
        "source_id": said("source_id"),
        "duration_s": durations,
        "seconds": [float(value) if _is_number(value) else math.nan for value in durations],
        "seconds_off": [
            abs(value - found.duration_s) if found is not None and _is_number(value) else math.nan
            for value, found in zip(durations, measured, strict=True)
        ],
        "sample_rate": said("sample_rate"),
        "source_sample_rate": said("source_sample_rate"),
        "source_bytes": said("source_bytes"),
        "bytes": [float(u.source_bytes) if _is_integer(u.source_bytes) else math.nan for u in utterances],
        "label": [_label(utterance, task)[0] for utterance in utterances],
        "decodes": [found is not None for found in measured],
        "same_content": [f is None or f.id == u.id for u, f in zip(utterances, measured, strict=True)],
    }
    for name in _MEASURES:
        values = [None if found is None else getattr(found, name) for found in measured]
        columns[name] = [math.nan if value is None else float(value) for value in values]
    return pd.DataFrame(columns)


def _said(value: Any) -> Any:
    # To pandas what is no number is missing, and here that is another fault.
    return "NaN" if isinstance(value, float) and math.isnan(value) else value


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _label(utterance: Utterance, task: TaskConfig) -> tuple[str, str | None]:
    raw = getattr(utterance, task.label_column)
    if raw is None:
        return "missing", None
    known, label = task.label_of(utterance.corpus, raw)
    return ("known", label) if known else ("unknown", None)


def _unknown_rate(utterance: Utterance, config: ValidateConfig) -> str:
    # Usually both are the same, and said once.
    kind, rate = next(
        (kind, rate)
        for kind, rate in (("", utterance.sample_rate), ("source ", utterance.source_sample_rate))
        if rate not in config.sample_rates
    )
    return f"{kind}sample rate {rate} Hz is not among validation.sample_rates"


def _loudness(level: float, config: ValidateConfig) -> str:
    heard = "digital silence" if level <= SILENCE_FLOOR_DBFS else f"{level:.1f} dBFS"
    return f"{heard}, at least {config.silence_dbfs:g} dBFS"


def _measured(subject: _Subject, name: str) -> float:
    value = getattr(subject[1], name)
    assert value is not None  # noqa: S101 - the schema found fault with it
    return value


_DETAILS: dict[str, Callable[[_Subject, TaskConfig, ValidateConfig], str]] = {
    "duration_missing": lambda s, t, c: "no duration",
    "duration_not_numeric": lambda s, t, c: f"duration {s[0].duration_s!r} is not a number",
    "duration_too_short": lambda s, t, c: f"{s[0].duration_s:.2f} s, at least {c.min_duration_s:g} s",
    "duration_too_long": lambda s, t, c: f"{s[0].duration_s:.2f} s, at most {c.max_duration_s:g} s",
    "duration_wrong": lambda s, t, c: (
        f"listed as {s[0].duration_s:.3f} s, the audio has {_measured(s, 'duration_s'):.3f} s"
    ),
    "sample_rate_missing": lambda s, t, c: "no sample rate",
    "sample_rate_unknown": lambda s, t, c: _unknown_rate(s[0], c),
    "size_missing": lambda s, t, c: "no source size",
    "size_not_integer": lambda s, t, c: f"source size {s[0].source_bytes!r} is not a whole number",
    "source_too_small": lambda s, t, c: f"{s[0].source_bytes:,} bytes, at least {c.min_bytes:,}",
    "source_too_large": lambda s, t, c: f"{s[0].source_bytes:,} bytes, at most {c.max_bytes:,}",
    "name_missing": lambda s, t, c: "no source id",
    "name_not_unique": lambda s, t, c: "another row has the same source id",
    "row_repeated": lambda s, t, c: "another row says the same in every column",
    "label_missing": lambda s, t, c: f"no {t.label_column}",
    "label_unknown": lambda s, t, c: (
        f"{t.label_column} {getattr(s[0], t.label_column)!r} is neither in task.map.{s[0].corpus} nor among the task's "
        "labels"
    ),
    "undecodable": lambda s, t, c: "the stored audio does not decode",
    "content_changed": lambda s, t, c: f"the stored audio is {s[1].id[:12] if s[1] else 'gone'}, not {s[0].id[:12]}",
    "silent": lambda s, t, c: _loudness(_measured(s, "rms_dbfs"), c),
    "clipped": lambda s, t, c: f"{_measured(s, 'clipped_share'):.1%} of the samples, at most {c.clipped_share:.1%}",
    "low_snr": lambda s, t, c: f"about {_measured(s, 'snr_db'):.0f} dB, at least {c.min_snr_db:g} dB",
    "mostly_silent": lambda s, t, c: f"{_measured(s, 'silence_ratio'):.0%} of it, at most {c.max_silence_ratio:.0%}",
    "dc_offset": lambda s, t, c: f"{_measured(s, 'dc_offset'):.1%} of full scale, at most {c.max_dc_offset:.1%}",
    "narrow_band": lambda s, t, c: (
        f"nothing above {_measured(s, 'bandwidth_hz') / 1000:.1f} kHz of {s[0].sample_rate / 2000:g} kHz, "
        f"at least {c.min_bandwidth_hz / 1000:g} kHz"
    ),
    "no_speech": lambda s, t, c: f"{_measured(s, 'speech_ratio'):.0%} of it, at least {c.min_speech_ratio:.0%}",
    "low_stoi": lambda s, t, c: f"STOI about {_measured(s, 'stoi'):.2f}, at least {c.min_stoi:g}",
    "low_pesq": lambda s, t, c: f"PESQ about {_measured(s, 'pesq'):.2f}, at least {c.min_pesq:g}",
    "low_si_sdr": lambda s, t, c: f"SI-SDR about {_measured(s, 'si_sdr_db'):.0f} dB, at least {c.min_si_sdr_db:g} dB",
}
